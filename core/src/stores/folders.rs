//! Which folders may be local stores: none of the system's, none of the platform's own. Agents open local stores with
//! all rights of the machine, so that a store over the data folder would hand out the master key.

use std::path::{Path, PathBuf};

use telecine_domain::store::Provider;

use super::OpenError;

/// Folders of the system that are no store, nor is anything inside them.
const SYSTEM: [&str; 14] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/root/.gnupg",
    "/root/.ssh",
    "/sbin",
    "/sys",
    "/usr",
];

/// Refuses a local folder that is `/`, lies in a folder of the system, or is, holds or lies in one of `own`. Links are
/// followed in what exists of each path.
pub(crate) fn check(provider: &Provider, own: &[PathBuf]) -> Result<(), OpenError> {
    let Provider::Local { folder } = provider else { return Ok(()) };
    match problem_of(Path::new(folder), own) {
        Some(problem) => Err(OpenError::Folder { folder: folder.clone(), problem }),
        None => Ok(()),
    }
}

/// Why `folder` may not be a store, and what to do.
pub(super) fn problem_of(folder: &Path, own: &[PathBuf]) -> Option<String> {
    const INSTEAD: &str = "make a folder for media, such as /srv/media, and name that";
    // As it is written, too: a link out of a system's folder can be turned around at any time.
    let spellings = [folder.to_owned(), resolved(folder)];
    for place in &spellings {
        if place.parent().is_none() {
            return Some(format!("the root of the file system may not be a store; {INSTEAD}"));
        }
        for root in SYSTEM.iter().map(Path::new) {
            if place.starts_with(root) || place.starts_with(resolved(root)) {
                let root = root.display();
                return Some(format!("{root} belongs to the system and may not be a store; {INSTEAD}"));
            }
        }
        for root in own {
            let real = resolved(root);
            let touches = |root: &Path| place.starts_with(root) || root.starts_with(place);
            if touches(root) || touches(&real) {
                let root = root.display();
                return Some(format!(
                    "it is, holds or lies in {root}, the platform's own data folder, which may not be a store; {INSTEAD}"
                ));
            }
        }
    }
    None
}

/// The path with the links followed in as much of it as exists.
fn resolved(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            let rest = path.strip_prefix(existing).expect("an ancestor is a prefix");
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_of_the_system_are_no_stores() {
        for folder in [
            "/",
            "//",
            "/.",
            "/etc",
            "/etc/",
            "/etc/ssl/made-up",
            "//etc",
            "/proc/self/root/srv",
            "/dev/shm/x",
            "/usr/share",
            "/lib64/x",
            "/bin",
            "/root/.ssh",
        ] {
            let problem = problem_of(Path::new(folder), &[]).expect(folder);
            assert!(problem.contains("/srv/media"), "{problem}");
        }
        for folder in ["/srv/media", "/etcetera", "/home/usr", "/library", "/mnt/etc", "/no/such/folder"] {
            assert_eq!(problem_of(Path::new(folder), &[]), None, "{folder}");
        }
    }

    #[test]
    fn the_platforms_own_folder_is_found_behind_links() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path().canonicalize().unwrap();
        let data = parent.join("data");
        std::fs::create_dir_all(data.join("system")).unwrap();
        std::fs::create_dir(parent.join("data-media")).unwrap();
        symlink(&data, parent.join("link")).unwrap();
        symlink("/etc", parent.join("system-link")).unwrap();
        symlink(&parent, parent.join("up")).unwrap();
        let refused = |folder: &Path, own: &Path| problem_of(folder, &[own.to_owned()]).is_some();
        for folder in [
            "data",
            "data/system",
            "data/not/there",
            "link",
            "link/system",
            "link/not/there",
            "system-link",
            "up",
            "up/link/system",
            ".",
        ] {
            assert!(refused(&parent.join(folder), &data), "{folder}");
            assert!(refused(&parent.join(folder), &parent.join("link")), "{folder} against a link");
        }
        for folder in ["data-media", "elsewhere", "data-media/not/there"] {
            assert!(!refused(&parent.join(folder), &data), "{folder}");
        }
        assert!(refused(Path::new("/"), &data) && refused(parent.parent().unwrap(), &data));
    }
}
