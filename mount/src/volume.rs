//! One mounted plan: what each operation means, whatever the protocol that asks for it.
//!
//! Invariants: inputs never change; nothing outside `outputs/<slot>/` changes; after `freeze` nothing changes at all;
//! every error that could lose or corrupt data is in the failure log before the engine learns of it.

mod change;

pub(crate) use change::{SPILL_PREFIX, Wanted};

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use tokio::runtime::Handle;

use crate::backing::{Backing, object_path};
use crate::blocks::BlockMap;
use crate::counters::CounterCells;
use crate::failure::{FailureLog, MountFailure};
use crate::input::{FolderInput, Input, InputSource};
use crate::journal::Journal;
use crate::object::Object;
use crate::output::{OutputFile, SpillBudget};
use crate::plan::{InputFile, MountPlan, OutputFolder, PlanError, Tuning};
use crate::readahead::Streams;
use crate::tree::{Kind, Node, ROOT, Tree, Zone};

/// How long the kernel may keep names and attributes of what never changes.
const FOR_GOOD: Duration = Duration::from_secs(86_400);
/// How long it may keep those of outputs; all changes come through the same kernel, which knows of them.
const A_MOMENT: Duration = Duration::from_secs(1);
/// What programs should read and write at a time.
const BLOCK_SIZE: u32 = 128 << 10;

/// The state behind one mount.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) failures: FailureLog,
    pub(crate) counters: Arc<CounterCells>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) blocks: Arc<BlockMap>,
    pub(crate) tuning: Tuning,
    tree: Mutex<Tree>,
    /// Held for reading by every change, for writing by the one that forbids changes.
    frozen: RwLock<bool>,
    next_file: AtomicU64,
    budget: Arc<SpillBudget>,
    spill: std::path::PathBuf,
    uid: u32,
    gid: u32,
    started: SystemTime,
}

/// An output folder of the plan and its place in the tree.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) plan: OutputFolder,
    pub(crate) inode: u64,
}

/// How a read is answered.
pub(crate) enum Answer {
    /// This many bytes are in the caller's buffer.
    Buffered(usize),
    /// These bytes.
    Cached(Bytes),
    /// They have to be fetched: the object, its number among the inputs, and the range.
    Fetch(Arc<Object>, usize, Range<u64>),
}

impl Volume {
    /// Lays out `plan`. Touches no store.
    pub(crate) fn new(plan: MountPlan, journal: Journal, runtime: Handle) -> Result<Self, PlanError> {
        let counters = Arc::new(CounterCells::default());
        let tuning = plan.tuning;
        let objects = plan.inputs.iter().filter(|i| matches!(i.backing, Backing::Objects { .. })).count();
        let blocks =
            BlockMap::new(objects, plan.cache_bytes, tuning.block_bytes, tuning.parallel_fetches, runtime);
        let longest_window = tuning.readahead_bytes.min(plan.cache_bytes / 4);
        let mut inputs = Vec::new();
        let mut next_object = 0;
        for file in plan.inputs {
            inputs.push(open_input(file, &mut next_object, &counters, &tuning, longest_window)?);
        }
        let mut tree = Tree::new();
        plant_inputs(&mut tree, &inputs);
        let outputs = plant_outputs(&mut tree, plan.outputs);
        Ok(Self {
            inputs,
            outputs,
            failures: FailureLog::default(),
            counters,
            journal: Arc::new(journal),
            blocks: Arc::new(blocks),
            tuning,
            tree: Mutex::new(tree),
            frozen: RwLock::new(false),
            next_file: AtomicU64::new(0),
            budget: Arc::new(SpillBudget::new(plan.spill_bytes)),
            spill: plan.spill,
            uid: plan.uid,
            gid: plan.gid,
            started: SystemTime::now(),
        })
    }

    /// The entry `name` of a folder; counts as a look-up.
    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        let inode = {
            let mut tree = self.tree();
            let inode = tree.lookup(parent, name)?.inode;
            tree.remember(inode);
            inode
        };
        self.attributes(inode)
    }

    /// The kernel has forgotten `count` look-ups.
    pub(crate) fn forget(&self, inode: u64, count: u64) {
        self.tree().forget(inode, count);
    }

    /// Attributes of a file or folder.
    pub(crate) fn attributes(&self, inode: u64) -> Result<FileAttr, Errno> {
        let (mut attributes, file) = {
            let tree = self.tree();
            let node = tree.node(inode)?;
            let file = if let Kind::File(file) = &node.kind { Some(file.clone()) } else { None };
            (self.describe(node), file)
        };
        if let Some(file) = file {
            attributes.size = file.size().map_err(Errno::from)?;
            attributes.blocks = attributes.size.div_ceil(512);
        }
        Ok(attributes)
    }

    /// How long the kernel may keep what it is told about `attributes`.
    pub(crate) fn life(&self, inode: u64) -> Duration {
        match self.tree().node(inode) {
            Ok(node) if node.zone == Zone::Fixed => FOR_GOOD,
            _ => A_MOMENT,
        }
    }

    /// The next entries of a folder after the one with inode number `after`: inode, kind, name.
    pub(crate) fn list(&self, inode: u64, after: u64) -> Result<Vec<(u64, FileType, Vec<u8>)>, Errno> {
        let tree = self.tree();
        let entries = tree.list(inode, after, 1024)?;
        let kind = |inode: u64| match tree.node(inode).map(|node| &node.kind) {
            Ok(Kind::Folder(_)) => FileType::Directory,
            _ => FileType::RegularFile,
        };
        Ok(entries.into_iter().map(|(inode, name)| (inode, kind(inode), name)).collect())
    }

    /// The folder that holds `inode`.
    pub(crate) fn parent(&self, inode: u64) -> Result<u64, Errno> {
        Ok(self.tree().node(inode)?.parent)
    }

    /// Opens a file for one more user.
    pub(crate) fn open(&self, inode: u64, for_writing: bool) -> Result<(), Errno> {
        match self.what(inode)? {
            What::Folder => Err(Errno::EISDIR),
            What::Input(_) if for_writing => Err(Errno::EROFS),
            What::Input(number) => match &self.inputs[number].source {
                InputSource::Folder(file) => file.open().map_err(|error| self.input_failed(number, &error)),
                InputSource::Object(_) => Ok(()),
            },
            What::File(_) if for_writing && self.is_frozen() => Err(Errno::EROFS),
            What::File(file) => {
                file.open().map_err(|error| self.output_failed(inode, &file, "opening it again", &error))?;
                self.tree().used(inode);
                Ok(())
            }
        }
    }

    /// One user of a file less.
    pub(crate) fn release(&self, inode: u64) {
        match self.what(inode) {
            Ok(What::Input(number)) => {
                if let InputSource::Folder(file) = &self.inputs[number].source
                    && let Err(error) = file.close()
                {
                    self.input_failed(number, &error);
                }
            }
            Ok(What::File(file)) => {
                file.close();
                let dropped = self.tree().unused(inode);
                self.drop_bytes(dropped);
            }
            Ok(What::Folder) | Err(_) => {}
        }
    }

    /// Reads up to `size` bytes; `buffer` is used, and grown, when the bytes come from a file.
    pub(crate) fn read(
        &self,
        inode: u64,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Answer, Errno> {
        match self.what(inode)? {
            What::Folder => Err(Errno::EISDIR),
            What::Input(number) => self.read_input(number, offset, size, buffer),
            What::File(file) => {
                let count = file
                    .read(offset, room(buffer, size))
                    .map_err(|error| self.output_failed(inode, &file, "reading it back", &error))?;
                self.counters.read(count);
                Ok(Answer::Buffered(count))
            }
        }
    }

    fn read_input(
        &self,
        number: usize,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Answer, Errno> {
        let input = &self.inputs[number];
        match &input.source {
            InputSource::Folder(file) => {
                let count = file
                    .read(offset, room(buffer, size))
                    .map_err(|error| self.input_failed(number, &error))?;
                self.counters.store_read(count);
                self.counters.read(count);
                Ok(Answer::Buffered(count))
            }
            InputSource::Object(object) => {
                let range = offset.min(input.size)..offset.saturating_add(u64::from(size)).min(input.size);
                if range.is_empty() {
                    return Ok(Answer::Buffered(0));
                }
                match self.blocks.try_read(object, range.clone()) {
                    Some(bytes) => {
                        self.counters.read(bytes.len());
                        Ok(Answer::Cached(bytes))
                    }
                    None => Ok(Answer::Fetch(object.clone(), number, range)),
                }
            }
        }
    }

    /// Free and total bytes behind `inode`.
    pub(crate) fn space(&self, inode: u64) -> (u64, u64) {
        let zone = self.tree().node(inode).map_or(Zone::Fixed, |node| node.zone);
        let Zone::Output(number) = zone else { return (0, self.inputs.iter().map(|input| input.size).sum()) };
        match &self.outputs[number].plan.backing {
            Backing::Objects { .. } => (self.budget.free(), self.budget.limit()),
            Backing::Folder { dir } => rustix::fs::fstatvfs(dir).map_or((0, 0), |stat| {
                (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize))
            }),
        }
    }

    /// Checks that folder inputs which were read are still the versions that were read.
    pub(crate) fn verify_inputs(&self) {
        for (number, input) in self.inputs.iter().enumerate() {
            if let InputSource::Folder(file) = &input.source
                && let Err(error) = file.verify_at_seal()
            {
                self.input_failed(number, &error);
            }
        }
    }

    /// Records that an input could not be read, and says what the engine is told.
    pub(crate) fn input_failed(&self, number: usize, error: &dyn std::error::Error) -> Errno {
        let input = &self.inputs[number];
        self.failures.record(MountFailure {
            path: input.path.to_string(),
            key: input.key.clone(),
            message: error.to_string(),
            errno: Errno::EIO.code(),
            is_input: true,
        });
        Errno::EIO
    }

    /// Records that an output could not be written, and says what the engine is told.
    fn output_failed(&self, inode: u64, file: &OutputFile, action: &str, error: &io::Error) -> Errno {
        let errno = Errno::from_i32(error.raw_os_error().unwrap_or(0));
        file.fail(errno.code());
        let (path, key) = self.path_and_key(inode);
        self.record_output_failure(path, key, action, error, errno);
        errno
    }

    fn record_output_failure(
        &self,
        path: String,
        key: String,
        action: &str,
        error: &io::Error,
        errno: Errno,
    ) {
        let hint = match errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                "; the space for outputs on this instance or in the store's folder is used up"
            }
            _ => "",
        };
        let message = format!("{action} failed: {error}{hint}");
        self.failures.record(MountFailure { path, key, message, errno: errno.code(), is_input: false });
    }

    /// The path for people and the key that the file would get.
    fn path_and_key(&self, inode: u64) -> (String, String) {
        let tree = self.tree();
        let path = tree.path(inode);
        let key = match tree.node(inode).map(|node| node.zone) {
            Ok(Zone::Output(number)) => {
                let plan = &self.outputs[number].plan;
                let relative = path.strip_prefix("outputs/").and_then(|rest| rest.strip_prefix(&plan.name));
                relative.and_then(|rest| plan.target.key_for(rest.trim_start_matches('/')))
            }
            _ => None,
        };
        (path, key.unwrap_or_default())
    }

    fn drop_bytes(&self, dropped: Option<Arc<OutputFile>>) {
        if let Some(file) = dropped
            && let Err(error) = file.remove()
        {
            tracing::warn!(%error, "a removed output could not be deleted; the journal still knows it");
        }
    }

    fn describe(&self, node: &Node) -> FileAttr {
        let (kind, size) = match &node.kind {
            Kind::Folder(_) => (FileType::Directory, 4096),
            Kind::Input(number) => (FileType::RegularFile, self.inputs[*number].size),
            Kind::File(_) => (FileType::RegularFile, 0),
        };
        let fixed = node.zone == Zone::Fixed;
        FileAttr {
            ino: INodeNo(node.inode),
            size,
            blocks: size.div_ceil(512),
            atime: node.modified,
            mtime: if fixed { self.started } else { node.modified },
            ctime: node.modified,
            crtime: self.started,
            kind,
            perm: node.mode,
            // 1 on a folder means that its folders are not counted.
            nlink: u32::from(node.parent != 0),
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_SIZE,
            flags: 0,
        }
    }

    fn what(&self, inode: u64) -> Result<What, Errno> {
        Ok(match &self.tree().node(inode)?.kind {
            Kind::Folder(_) => What::Folder,
            Kind::Input(number) => What::Input(*number),
            Kind::File(file) => What::File(file.clone()),
        })
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node's kind, without the lock.
enum What {
    Folder,
    Input(usize),
    File(Arc<OutputFile>),
}

fn room(buffer: &mut Vec<u8>, size: u32) -> &mut [u8] {
    if buffer.len() < size as usize {
        buffer.resize(size as usize, 0);
    }
    &mut buffer[..size as usize]
}

fn open_input(
    file: InputFile,
    next_object: &mut usize,
    counters: &Arc<CounterCells>,
    tuning: &Tuning,
    longest_window: u64,
) -> Result<Input, PlanError> {
    let InputFile { path, backing, key, etag, size } = file;
    let source = match backing {
        Backing::Folder { dir } => InputSource::Folder(FolderInput::new(dir, key.clone(), etag, size)),
        Backing::Objects { store, prefix, .. } => {
            let index = *next_object;
            *next_object += 1;
            let at = object_path(&prefix, &key).map_err(|error| PlanError::Key {
                subject: path.to_string(),
                key: key.clone(),
                reason: error.to_string(),
            })?;
            InputSource::Object(Arc::new(Object {
                index,
                key: key.clone(),
                etag,
                size,
                store,
                path: at,
                counters: counters.clone(),
                retry_budget: tuning.retry_budget,
                stall: tuning.stall,
                streams: Mutex::new(Streams::new(size, longest_window)),
            }))
        }
    };
    Ok(Input { path, key, size, source })
}

fn plant_inputs(tree: &mut Tree, inputs: &[Input]) {
    let folder = || Kind::Folder(crate::tree::Entries::default());
    let root = tree.plant(ROOT, "inputs", folder(), Zone::Fixed, 0o555);
    for (number, input) in inputs.iter().enumerate() {
        let slot = tree.plant(root, input.path.slot(), folder(), Zone::Fixed, 0o555);
        tree.plant(slot, input.path.file_name(), Kind::Input(number), Zone::Fixed, 0o444);
    }
}

fn plant_outputs(tree: &mut Tree, outputs: Vec<OutputFolder>) -> Vec<Output> {
    let folder = || Kind::Folder(crate::tree::Entries::default());
    let root = tree.plant(ROOT, "outputs", folder(), Zone::Fixed, 0o755);
    let plant = |(number, plan): (usize, OutputFolder)| {
        let inode = tree.plant(root, &plan.name, folder(), Zone::Output(number), 0o755);
        Output { plan, inode }
    };
    outputs.into_iter().enumerate().map(plant).collect()
}
