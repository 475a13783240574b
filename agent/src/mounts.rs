//! Mounts of the machine: the shared parent of all attempts, the small run folder of an engine's socket, and taking all
//! of it away again.
//!
//! A container sees a mount that is made after its start only when the parent is shared on the machine and bound as a
//! slave; so the attempts folder is bound onto itself and shared once. What is mounted is read from the kernel's table:
//! nobody looks *into* an attempt's mount, which may be wedged.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// An engine's socket needs little.
const RUN_OPTIONS: &str = "size=1m,nr_inodes=64,mode=0700";

/// Makes mounts below `folder` visible in containers that are bound to parts of it. Done before, it is done already.
///
/// # Errors
/// When the process may not mount.
pub fn share(folder: &Path) -> io::Result<()> {
    if !mounted_at_or_below(folder)?.contains(&folder.to_owned()) {
        rustix::mount::mount_bind(folder, folder)?;
    }
    rustix::mount::mount_change(folder, MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

/// Mounts the folder in which an engine of `user` binds its socket: 1 MiB of memory, its own.
///
/// # Errors
/// When the process may not mount.
pub fn mount_run_folder(folder: &Path, user: (u32, u32)) -> io::Result<()> {
    let options = format!("{RUN_OPTIONS},uid={},gid={}", user.0, user.1);
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("telecine", folder, "tmpfs", flags, options.as_c_str())?;
    Ok(())
}

/// Takes away everything that is mounted at or below `folder`, deepest first; what is in use goes when it is free.
///
/// # Errors
/// When something stays.
pub fn unmount_all(folder: &Path) -> io::Result<()> {
    // What lies over another mount of the same place shows only when it is gone, so look again.
    for _ in 0..64 {
        let mut mounted = mounted_at_or_below(folder)?;
        mounted.sort();
        let Some(deepest) = mounted.pop() else { return Ok(()) };
        rustix::mount::unmount(&deepest, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} stays mounted", folder.display())))
}

/// Mount points at or below `folder`, in the order they were mounted.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn mounted_at_or_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let points = table.split(|&byte| byte == b'\n').filter_map(mount_point);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// The fifth field of a line of mountinfo; blanks and backslashes are written in octal.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|&byte| byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            rest.get(1..4).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &rest[4..];
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_written() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134c/d rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/a b\c/d")));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn nothing_is_mounted_in_a_fresh_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mounted_at_or_below(folder.path()).unwrap(), Vec::<PathBuf>::new());
        unmount_all(folder.path()).unwrap();
    }
}
