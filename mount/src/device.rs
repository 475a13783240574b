//! Mounting, unmounting and aborting: the calls that need root, made by whoever holds the device, not by whoever serves it.
//!
//! None of them ever looks at the mounted file system itself: while nobody serves it, a single stat would hang for good.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Mounts an unserved FUSE file system on the folder `mountpoint` and returns its device.
///
/// The holder of the descriptor may hand it to another process, which serves it with [`crate::MountSession::serve`].
/// Nothing unmounts by itself: see [`unmount`].
///
/// # Errors
/// When `/dev/fuse` cannot be opened or the mount is refused (it needs root); the text names which.
pub fn open_device_and_mount(mountpoint: &Path) -> io::Result<OwnedFd> {
    let device = open_device().map_err(|error| {
        named(&error, "opening /dev/fuse (is the fuse module loaded, and is it allowed here?)")
    })?;
    mount_device(&device, mountpoint)?;
    Ok(device)
}

/// A fresh connection to the kernel's FUSE.
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::CLOEXEC.bits() as i32;
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/fuse")?;
    Ok(device.into())
}

/// Mounts the unserved file system of `device` on the folder `mountpoint`.
pub(crate) fn mount_device(device: &OwnedFd, mountpoint: &Path) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).expect("the options have no NUL character");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount("telecine", mountpoint, "fuse.telecine", flags, options.as_c_str()).map_err(
        |error| named(&error.into(), &format!("mounting on {} (root is needed)", mountpoint.display())),
    )
}

/// Takes every mount off `mountpoint`, at once and without waiting for anybody who uses it. No mount there is success.
///
/// # Errors
/// When unmounting is refused.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(named(&error.into(), &format!("unmounting {}", mountpoint.display()))),
        }
    }
}

/// Ends the connection behind `mountpoint`: everything that waits on it fails with ENOTCONN or ECONNABORTED at once.
///
/// This frees a mount that nobody serves any more. A mount point without a FUSE mount is success.
///
/// # Errors
/// When the kernel's control files cannot be reached (root is needed).
pub fn abort_connection(mountpoint: &Path) -> io::Result<()> {
    let Some(device) = device_of(mountpoint)? else { return Ok(()) };
    let minor = device.split_once(':').map_or(device.as_str(), |(_, minor)| minor);
    let abort = Path::new(CONNECTIONS).join(minor).join("abort");
    if !abort.exists() {
        mount_control_files()?;
    }
    match OpenOptions::new().write(true).open(&abort).and_then(|mut file| file.write_all(b"1")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(named(&error, &format!("writing {}", abort.display())))
        }
        _ => Ok(()),
    }
}

/// Lets the kernel read `kibibytes` ahead on the mount at `mountpoint` (its default is 128). Call it once it is served.
///
/// # Errors
/// When nothing is mounted there or the setting cannot be written; the mount works all the same, with smaller requests.
pub fn raise_readahead(mountpoint: &Path, kibibytes: u32) -> io::Result<()> {
    let device = device_of(mountpoint)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no FUSE mount at {}", mountpoint.display()))
    })?;
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let written = File::options().write(true).open(&setting).and_then(|mut file| write!(file, "{kibibytes}"));
    written.map_err(|error| named(&error, &format!("writing {setting}")))
}

fn named(error: &io::Error, action: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{action}: {error}"))
}

fn mount_control_files() -> io::Result<()> {
    match rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", MountFlags::empty(), None) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(named(&error.into(), &format!("mounting fusectl on {CONNECTIONS}"))),
    }
}

/// The device `major:minor` of the topmost FUSE mount at `mountpoint`, from the mount table.
fn device_of(mountpoint: &Path) -> io::Result<Option<String>> {
    let place = without_links(mountpoint)?;
    Ok(device_in(&std::fs::read("/proc/self/mountinfo")?, &place))
}

/// `mountpoint` with the symbolic links of its parent resolved; its last component is never touched.
fn without_links(mountpoint: &Path) -> io::Result<PathBuf> {
    match (mountpoint.parent(), mountpoint.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Ok(mountpoint.to_path_buf()),
    }
}

fn device_in(mountinfo: &[u8], place: &Path) -> Option<String> {
    let mut found = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let (Some(device), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
        let after_dash = fields.iter().position(|field| *field == b"-").and_then(|at| fields.get(at + 1));
        let is_fuse = after_dash.is_some_and(|kind| *kind == b"fuse" || kind.starts_with(b"fuse."));
        if is_fuse && unescaped(point).as_bytes() == place.as_os_str().as_bytes() {
            found = Some(String::from_utf8_lossy(device).into_owned());
        }
    }
    found
}

/// The mount table writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_comes_from_the_mount_table() {
        let table = b"36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 - fuse.telecine telecine rw\n\
                      37 35 0:52 / /mnt/plain rw - ext4 /dev/root rw\n\
                      38 35 0:53 / /mnt/a\\040b rw - fuse.telecine telecine rw\n";
        assert_eq!(device_in(table, Path::new("/mnt/a b")).as_deref(), Some("0:53"));
        assert_eq!(device_in(table, Path::new("/mnt/plain")), None);
        assert_eq!(device_in(b"", Path::new("/")), None);
        assert_eq!(unescaped(b"a\\134b\\04"), OsString::from("a\\b\\04"));
    }
}
