//! Where the API is and with which key: options and environment first, else the file that `telecine up` writes into
//! its data folder.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::client::{ApiKey, Client};
use crate::failure::{Exit, Failure};

/// Name of the file in the data folder.
pub(crate) const FILE_NAME: &str = "client.toml";

/// What `up` writes for the other verbs; mode 0600, since it holds a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientFile {
    /// URL of the API.
    pub url: String,
    /// A key of the default account.
    pub api_key: String,
}

impl ClientFile {
    /// Reads the file of a data folder; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(crate) fn read(data: &Path) -> Result<Option<Self>, Failure> {
        Self::read_from(&data.join(FILE_NAME))
    }

    /// Reads such a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(crate) fn read_from(path: &Path) -> Result<Option<Self>, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let failure =
                    Failure::new(Exit::Access, format!("{} cannot be read: {error}", path.display()));
                return Err(failure.advise("run the command as the user who runs `telecine up`"));
            }
        };
        let wrong = |error: toml::de::Error| {
            Failure::new(Exit::Usage, format!("{} is damaged: {}", path.display(), error.message()))
                .advise("start `telecine up` again: it writes a new one when the file is gone")
        };
        toml::from_str(&text).map(Some).map_err(wrong)
    }

    /// Writes the file whole or not at all, readable by its owner only.
    ///
    /// # Errors
    /// When the folder does not take it.
    pub(crate) fn write(&self, data: &Path, name: &str) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        let temporary = data.join(".client.toml.new");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, data.join(name))?;
        std::fs::File::open(data)?.sync_all()
    }
}

/// The data folder: the one given, else `$XDG_DATA_HOME/telecine`, else `~/.local/share/telecine`.
///
/// # Errors
/// When none is given and there is no home folder.
pub(crate) fn data_folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(folder) = given {
        return Ok(folder.to_owned());
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("telecine"))
        .ok_or_else(|| Failure::usage("there is no home folder: give --data DIR"))
}

/// A client as the options, the environment or the data folder say.
///
/// # Errors
/// When nothing says where the API is, or what says it cannot be read.
pub(crate) fn client(global: &Global) -> Result<Client, Failure> {
    let file = match (&global.url, &global.api_key) {
        (Some(_), Some(_)) => None,
        _ => ClientFile::read(&data_folder(global.data.as_deref())?)?,
    };
    let url = global.url.clone().or_else(|| file.as_ref().map(|file| file.url.clone()));
    let Some(url) = url else { return Err(unknown_api(global)) };
    // The key of the file belongs to the API of the file: it must not travel to another one.
    let same = |file: &&ClientFile| file.url.trim_end_matches('/') == url.trim_end_matches('/');
    let key = global.api_key.clone().or_else(|| file.as_ref().filter(same).map(|file| file.api_key.clone()));
    Client::new(&url, key.as_deref().map(ApiKey::new).as_ref(), global.idempotency_key.clone())
}

fn unknown_api(global: &Global) -> Failure {
    let folder = data_folder(global.data.as_deref()).map(|folder| folder.display().to_string());
    let folder = folder.unwrap_or_else(|_| "the data folder".to_owned());
    Failure::new(Exit::Usage, "no API is known")
        .detail(format!("neither --url nor TELECINE_URL is set, and {folder} holds no {FILE_NAME}"))
        .advise(
            "start one with `telecine up --data DIR` and give the same --data DIR (or TELECINE_DATA) here",
        )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn global(url: Option<&str>, data: &Path) -> Global {
        Global {
            url: url.map(str::to_owned),
            api_key: None,
            data: Some(data.to_owned()),
            output: crate::output::Format::Table,
            idempotency_key: None,
        }
    }

    #[test]
    fn the_file_is_private_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ClientFile::read(folder.path()).unwrap().is_none());
        let file = ClientFile { url: "http://127.0.0.1:1".to_owned(), api_key: "tk_x".to_owned() };
        file.write(folder.path(), FILE_NAME).unwrap();
        file.write(folder.path(), FILE_NAME).unwrap();
        let mode = std::fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(ClientFile::read(folder.path()).unwrap() == Some(file));
        assert!(client(&global(None, folder.path())).is_ok());
    }

    #[test]
    fn a_damaged_or_missing_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let text = client(&global(None, folder.path())).unwrap_err().to_string();
        assert!(text.contains("telecine up --data"), "{text}");
        std::fs::write(folder.path().join(FILE_NAME), "url = 3").unwrap();
        assert!(client(&global(None, folder.path())).unwrap_err().to_string().contains("damaged"));
    }
}
