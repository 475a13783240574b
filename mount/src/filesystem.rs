//! The adapter between the kernel's requests and [`Volume`]: it only adapts.
//!
//! Metadata and files are answered on the session's threads; ranges of objects that have to be fetched are answered from
//! tasks, so that a slow store never blocks a thread that others need. File handles carry no state: every request is
//! answered by inode number.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::plan::MAX_NAME_BYTES;
use crate::volume::{Answer, Volume, Wanted};

/// Largest request in either direction.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests the kernel may have in the background, readahead among them.
const BACKGROUND: u16 = 64;
const NO_GENERATION: Generation = Generation(0);
const NO_HANDLE: FileHandle = FileHandle(0);

thread_local! {
    /// Each session thread reads files into one buffer; allocating a megabyte per request would cost more than the read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One mounted volume.
#[derive(Debug)]
pub(crate) struct MountedVolume {
    pub(crate) volume: Arc<Volume>,
}

impl MountedVolume {
    fn answer_entry(&self, result: Result<fuser::FileAttr, Errno>, reply: ReplyEntry) {
        match result {
            Ok(attributes) => reply.entry(&self.volume.life(attributes.ino.0), &attributes, NO_GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn answer_attributes(&self, result: Result<fuser::FileAttr, Errno>, reply: ReplyAttr) {
        match result {
            Ok(attributes) => reply.attr(&self.volume.life(attributes.ino.0), &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn answer_fetched(
        &self,
        object: Arc<crate::object::Object>,
        number: usize,
        range: std::ops::Range<u64>,
        reply: ReplyData,
    ) {
        let volume = self.volume.clone();
        self.volume.blocks.spawn(async move {
            match volume.blocks.read(&object, range).await {
                Ok(bytes) => {
                    volume.counters.read(bytes.len());
                    reply.data(&bytes);
                }
                Err(error) => reply.error(volume.input_failed(number, &*error)),
            }
        });
    }
}

fn answer_empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for MountedVolume {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_DIO] {
            // A kernel without it works, only slower.
            let _unsupported = config.add_capabilities(wanted);
        }
        let _offered = config.set_max_write(MAX_REQUEST);
        if let Err(offered) = config.set_max_readahead(MAX_REQUEST) {
            let _same = config.set_max_readahead(offered);
        }
        let _previous = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.volume.counters.request();
        self.answer_entry(self.volume.lookup(parent.0, name.as_bytes()), reply);
    }

    fn forget(&self, _: &Request, inode: INodeNo, count: u64) {
        self.volume.forget(inode.0, count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.volume.counters.request();
        self.answer_attributes(self.volume.attributes(inode.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _: Option<FileHandle>,
        _created: Option<SystemTime>,
        _checked: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.volume.counters.request();
        let modified = modified.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        });
        let wanted = Wanted { mode, uid, gid, size, modified };
        self.answer_attributes(self.volume.set_attributes(inode.0, wanted), reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.volume.counters.request();
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.volume.counters.request();
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.volume.counters.request();
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.volume.counters.request();
        self.answer_entry(self.volume.make_folder(parent.0, name.as_bytes(), mode & !umask), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.volume.counters.request();
        answer_empty(self.volume.unlink(parent.0, name.as_bytes()), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.volume.counters.request();
        answer_empty(self.volume.remove_folder(parent.0, name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.volume.counters.request();
        if !(flags & !RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        let (from, to) = ((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()));
        answer_empty(self.volume.rename(from, to, replace), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.volume.counters.request();
        match self.volume.create(parent.0, name.as_bytes(), mode & !umask) {
            Ok(attributes) => {
                let life = self.volume.life(attributes.ino.0);
                reply.created(&life, &attributes, NO_GENERATION, NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.volume.counters.request();
        // Nobody but this mount changes what it shows, so pages the kernel has stay true.
        match self.volume.open(inode.0, flags.acc_mode() != OpenAccMode::O_RDONLY) {
            Ok(()) => reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.volume.counters.request();
        BUFFER.with_borrow_mut(|buffer| {
            match self.volume.read(inode.0, offset, size.min(2 * MAX_REQUEST), buffer) {
                Ok(Answer::Buffered(count)) => reply.data(&buffer[..count]),
                Ok(Answer::Cached(bytes)) => reply.data(&bytes),
                Ok(Answer::Fetch(object, number, range)) => self.answer_fetched(object, number, range, reply),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.volume.counters.request();
        match self.volume.write(inode.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.volume.counters.request();
        answer_empty(self.volume.flush(inode.0), reply);
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.volume.counters.request();
        self.volume.release(inode.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.volume.counters.request();
        answer_empty(self.volume.sync(inode.0), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.volume.counters.request();
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.volume.counters.request();
        answer_empty(self.volume.allocate(inode.0, mode, offset, length), reply);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.volume.counters.request();
        let parent = match self.volume.parent(inode.0) {
            Ok(parent) => parent,
            Err(errno) => return reply.error(errno),
        };
        // Cookies: 1 after ".", 2 after "..", and after an entry its inode number plus 2.
        let dots: [(u64, u64, &[u8]); 2] = [(1, inode.0, b"."), (2, parent, b"..")];
        for (cookie, inode, name) in dots {
            if offset < cookie
                && reply.add(INodeNo(inode), cookie, FileType::Directory, OsStr::from_bytes(name))
            {
                return reply.ok();
            }
        }
        match self.volume.list(inode.0, offset.saturating_sub(2)) {
            Err(errno) => reply.error(errno),
            Ok(entries) => {
                for (inode, kind, name) in entries {
                    if reply.add(INodeNo(inode), inode + 2, kind, OsStr::from_bytes(&name)) {
                        break;
                    }
                }
                reply.ok();
            }
        }
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        self.volume.counters.request();
        let (free, total) = self.volume.space(inode.0);
        let (free, total) = (free / 4096, total / 4096);
        reply.statfs(total, free, free, 0, 0, 4096, MAX_NAME_BYTES as u32, 4096);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        // ENOSYS once, and the kernel answers EOPNOTSUPP by itself from then on.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
