//! The names of the mount: folders, inputs and output files by inode number. Memory only, no disk, no store.
//!
//! Inode numbers are never used twice. A file without a name lives until the kernel has forgotten it and nobody has it open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::Errno;

use crate::output::OutputFile;

/// Inode number of the mount's root.
pub(crate) const ROOT: u64 = 1;

/// Most files and folders below `outputs/`.
const MOST_NODES: usize = 1_000_000;

/// One file or folder.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) inode: u64,
    /// The folder that holds it; 0 once it has no name.
    pub(crate) parent: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) zone: Zone,
    pub(crate) mode: u16,
    pub(crate) modified: SystemTime,
    lookups: u64,
    users: u32,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Folder(Entries),
    /// Number of an input of the plan.
    Input(usize),
    File(Arc<OutputFile>),
}

/// Which rules hold at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Never changes.
    Fixed,
    /// Inside the output with this number.
    Output(usize),
}

/// The entries of a folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    by_name: BTreeMap<Vec<u8>, u64>,
    /// By inode number: the order of listing, which changes elsewhere in the folder do not disturb.
    by_inode: BTreeMap<u64, Vec<u8>>,
}

/// The whole tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// A file that has lost its last name and its last user: its bytes can go.
pub(crate) type Dropped = Option<Arc<OutputFile>>;

impl Tree {
    /// A tree with nothing but its root.
    pub(crate) fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), next: ROOT };
        let kind = Kind::Folder(Entries::default());
        tree.nodes.insert(ROOT, Node::new(ROOT, ROOT, Vec::new(), kind, Zone::Fixed, 0o755));
        tree.next += 1;
        tree
    }

    /// Adds a node of the plan, or finds the folder that is already there.
    pub(crate) fn plant(&mut self, parent: u64, name: &str, kind: Kind, zone: Zone, mode: u16) -> u64 {
        match self.lookup(parent, name.as_bytes()) {
            Ok(node) => node.inode,
            Err(_) => self.link_new(parent, name.as_bytes(), kind, zone, mode),
        }
    }

    pub(crate) fn node(&self, inode: u64) -> Result<&Node, Errno> {
        self.nodes.get(&inode).ok_or(Errno::ESTALE)
    }

    pub(crate) fn node_mut(&mut self, inode: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&inode).ok_or(Errno::ESTALE)
    }

    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<&Node, Errno> {
        let inode = self.entries(parent)?.by_name.get(name).ok_or(Errno::ENOENT)?;
        self.node(*inode)
    }

    /// Counts a look-up that the kernel will forget one day.
    pub(crate) fn remember(&mut self, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.lookups += 1;
        }
    }

    /// The kernel has forgotten `count` look-ups.
    pub(crate) fn forget(&mut self, inode: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.lookups = node.lookups.saturating_sub(count);
            self.collect(inode);
        }
    }

    /// One user more of a file.
    pub(crate) fn used(&mut self, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.users += 1;
        }
    }

    /// One user less of a file.
    pub(crate) fn unused(&mut self, inode: u64) -> Dropped {
        let node = self.nodes.get_mut(&inode)?;
        node.users = node.users.saturating_sub(1);
        let dropped = node.without_name_and_user();
        self.collect(inode);
        dropped
    }

    /// Up to `most` entries of a folder after the one with inode number `after`.
    pub(crate) fn list(&self, inode: u64, after: u64, most: usize) -> Result<Vec<(u64, Vec<u8>)>, Errno> {
        let entries = self.entries(inode)?.by_inode.range(after + 1..);
        Ok(entries.take(most).map(|(inode, name)| (*inode, name.clone())).collect())
    }

    /// Whether a new name may appear in the folder `parent`; returns its zone.
    pub(crate) fn check_new(&self, parent: u64, name: &[u8]) -> Result<Zone, Errno> {
        let zone = self.writable(parent)?;
        if self.entries(parent)?.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if self.nodes.len() >= MOST_NODES {
            return Err(Errno::ENOSPC);
        }
        Ok(zone)
    }

    /// Adds a file or folder to an output.
    pub(crate) fn add(&mut self, parent: u64, name: &[u8], kind: Kind, mode: u16) -> Result<u64, Errno> {
        let zone = self.check_new(parent, name)?;
        Ok(self.link_new(parent, name, kind, zone, mode))
    }

    /// Removes a file's name.
    pub(crate) fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<Dropped, Errno> {
        self.writable(parent)?;
        let node = self.lookup(parent, name)?;
        if matches!(node.kind, Kind::Folder(_)) {
            return Err(Errno::EISDIR);
        }
        let inode = node.inode;
        Ok(self.drop_name(inode))
    }

    /// Removes an empty folder.
    pub(crate) fn remove_folder(&mut self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.writable(parent)?;
        let node = self.lookup(parent, name)?;
        let Kind::Folder(entries) = &node.kind else { return Err(Errno::ENOTDIR) };
        if !entries.by_name.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let inode = node.inode;
        self.drop_name(inode);
        Ok(())
    }

    /// Moves a file or folder inside one output, over what has the new name if that is possible and `replace` allows it.
    pub(crate) fn rename(
        &mut self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        replace: bool,
    ) -> Result<Dropped, Errno> {
        let (from, to) = (self.writable(parent)?, self.writable(new_parent)?);
        let node = self.lookup(parent, name)?;
        let (inode, is_folder) = (node.inode, matches!(node.kind, Kind::Folder(_)));
        if from != to {
            return Err(Errno::EXDEV);
        }
        if is_folder && self.is_inside(new_parent, inode) {
            return Err(Errno::EINVAL);
        }
        let mut dropped = None;
        if let Ok(there) = self.lookup(new_parent, new_name) {
            let there_inode = there.inode;
            match (&there.kind, is_folder) {
                _ if !replace => return Err(Errno::EEXIST),
                _ if there_inode == inode => return Ok(None),
                (Kind::Folder(entries), true) if !entries.by_name.is_empty() => return Err(Errno::ENOTEMPTY),
                (Kind::Folder(_), false) => return Err(Errno::EISDIR),
                (Kind::Input(_) | Kind::File(_), true) => return Err(Errno::ENOTDIR),
                _ => dropped = self.drop_name(there_inode),
            }
        }
        self.remove_entry(parent, inode);
        self.insert_entry(new_parent, new_name, inode);
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.parent = new_parent;
            node.name = new_name.to_vec();
        }
        Ok(dropped)
    }

    /// The path below the mount point, for people.
    pub(crate) fn path(&self, inode: u64) -> String {
        let mut names = Vec::new();
        let mut at = inode;
        while let Some(node) = self.nodes.get(&at).filter(|node| node.inode != ROOT) {
            names.push(String::from_utf8_lossy(&node.name).into_owned());
            if node.parent == 0 {
                names.push("(removed)".to_owned());
                break;
            }
            at = node.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// Every file below the folder `inode` with its path from there.
    pub(crate) fn files_below(&self, inode: u64) -> Vec<(Vec<u8>, u64, Arc<OutputFile>)> {
        let mut files = Vec::new();
        let mut folders = vec![(inode, Vec::new())];
        while let Some((folder, prefix)) = folders.pop() {
            let Ok(entries) = self.entries(folder) else { continue };
            for (name, child) in &entries.by_name {
                let mut path = prefix.clone();
                path.extend_from_slice(name);
                match self.nodes.get(child).map(|node| &node.kind) {
                    Some(Kind::File(file)) => files.push((path, *child, file.clone())),
                    Some(Kind::Folder(_)) => {
                        path.push(b'/');
                        folders.push((*child, path));
                    }
                    Some(Kind::Input(_)) | None => {}
                }
            }
        }
        files.sort_by(|one, other| one.0.cmp(&other.0));
        files
    }

    fn entries(&self, inode: u64) -> Result<&Entries, Errno> {
        match &self.node(inode)?.kind {
            Kind::Folder(entries) => Ok(entries),
            Kind::Input(_) | Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn writable(&self, folder: u64) -> Result<Zone, Errno> {
        let node = self.node(folder)?;
        self.entries(folder)?;
        match node.zone {
            Zone::Fixed => Err(Errno::EROFS),
            Zone::Output(_) if node.parent == 0 => Err(Errno::ENOENT),
            zone @ Zone::Output(_) => Ok(zone),
        }
    }

    fn is_inside(&self, inode: u64, folder: u64) -> bool {
        let mut at = inode;
        while at != ROOT && at != 0 {
            if at == folder {
                return true;
            }
            at = self.nodes.get(&at).map_or(0, |node| node.parent);
        }
        false
    }

    fn link_new(&mut self, parent: u64, name: &[u8], kind: Kind, zone: Zone, mode: u16) -> u64 {
        let inode = self.next;
        self.next += 1;
        self.nodes.insert(inode, Node::new(inode, parent, name.to_vec(), kind, zone, mode));
        self.insert_entry(parent, name, inode);
        inode
    }

    fn drop_name(&mut self, inode: u64) -> Dropped {
        let parent = self.nodes.get(&inode).map_or(0, |node| node.parent);
        self.remove_entry(parent, inode);
        let node = self.nodes.get_mut(&inode)?;
        node.parent = 0;
        let dropped = node.without_name_and_user();
        self.collect(inode);
        dropped
    }

    fn insert_entry(&mut self, folder: u64, name: &[u8], inode: u64) {
        if let Some(Node { kind: Kind::Folder(entries), modified, .. }) = self.nodes.get_mut(&folder) {
            entries.by_name.insert(name.to_vec(), inode);
            entries.by_inode.insert(inode, name.to_vec());
            *modified = SystemTime::now();
        }
    }

    fn remove_entry(&mut self, folder: u64, inode: u64) {
        if let Some(Node { kind: Kind::Folder(entries), modified, .. }) = self.nodes.get_mut(&folder)
            && let Some(name) = entries.by_inode.remove(&inode)
        {
            entries.by_name.remove(&name);
            *modified = SystemTime::now();
        }
    }

    fn collect(&mut self, inode: u64) {
        if self.nodes.get(&inode).is_some_and(|node| node.parent == 0 && node.lookups == 0 && node.users == 0)
        {
            self.nodes.remove(&inode);
        }
    }
}

impl Node {
    fn new(inode: u64, parent: u64, name: Vec<u8>, kind: Kind, zone: Zone, mode: u16) -> Self {
        let modified = SystemTime::now();
        Self { inode, parent, name, kind, zone, mode, modified, lookups: 0, users: 0 }
    }

    fn without_name_and_user(&self) -> Dropped {
        match &self.kind {
            Kind::File(file) if self.parent == 0 && self.users == 0 => Some(file.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> Kind {
        Kind::Folder(Entries::default())
    }

    fn tree() -> (Tree, u64) {
        let mut tree = Tree::new();
        let outputs = tree.plant(ROOT, "outputs", folder(), Zone::Fixed, 0o755);
        let main = tree.plant(outputs, "main", folder(), Zone::Output(0), 0o755);
        tree.plant(outputs, "other", folder(), Zone::Output(1), 0o755);
        (tree, main)
    }

    #[test]
    fn folders_move_but_never_into_themselves_or_into_another_output() {
        let (mut tree, main) = tree();
        let a = tree.add(main, b"a", folder(), 0o755).unwrap();
        let b = tree.add(a, b"b", folder(), 0o755).unwrap();
        assert_eq!(tree.rename((main, b"a"), (b, b"x"), true).unwrap_err(), Errno::EINVAL);
        assert_eq!(tree.rename((main, b"a"), (a, b"x"), true).unwrap_err(), Errno::EINVAL);
        let outputs = tree.lookup(ROOT, b"outputs").unwrap().inode;
        let other = tree.lookup(outputs, b"other").unwrap().inode;
        assert_eq!(tree.rename((main, b"a"), (other, b"a"), true).unwrap_err(), Errno::EXDEV);
        assert_eq!(tree.rename((outputs, b"main"), (outputs, b"x"), true).unwrap_err(), Errno::EROFS);
        tree.rename((a, b"b"), (main, b"b"), true).unwrap();
        assert_eq!(tree.path(b), "outputs/main/b");
        assert_eq!(tree.rename((main, b"a"), (main, b"b"), false).unwrap_err(), Errno::EEXIST);
        tree.rename((main, b"a"), (main, b"b"), true).unwrap();
        assert_eq!(tree.lookup(main, b"b").unwrap().inode, a);
    }

    #[test]
    fn the_plan_itself_cannot_be_changed() {
        let (mut tree, main) = tree();
        let outputs = tree.lookup(ROOT, b"outputs").unwrap().inode;
        assert_eq!(tree.add(ROOT, b"x", folder(), 0o755).unwrap_err(), Errno::EROFS);
        assert_eq!(tree.remove_folder(outputs, b"main").unwrap_err(), Errno::EROFS);
        assert_eq!(tree.unlink(main, b"nothing").unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped_whatever_is_removed() {
        let (mut tree, main) = tree();
        for n in 0..10 {
            tree.add(main, format!("{n}").as_bytes(), folder(), 0o755).unwrap();
        }
        let first = tree.list(main, 0, 4).unwrap();
        for (_, name) in &first {
            tree.remove_folder(main, name).unwrap();
        }
        let rest = tree.list(main, first[3].0, 100).unwrap();
        assert_eq!(rest.len(), 6);
    }

    #[test]
    fn a_folder_without_a_name_lives_until_it_is_forgotten_and_takes_no_files() {
        let (mut tree, main) = tree();
        let a = tree.add(main, b"a", folder(), 0o755).unwrap();
        tree.remember(a);
        tree.remove_folder(main, b"a").unwrap();
        assert_eq!(tree.check_new(a, b"x").unwrap_err(), Errno::ENOENT);
        tree.forget(a, 1);
        assert_eq!(tree.node(a).err(), Some(Errno::ESTALE));
    }
}
