//! A socket file for the programs of this machine: who may open the file may ask. (REST-315)

use crate::api::listen::ListenError;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// For another agent that may listen there already.
const ASK_FOR: Duration = Duration::from_secs(1);

/// Bound; the file goes when this is dropped, unless it is somebody else's by then.
#[derive(Debug)]
pub struct LocalSocket {
    pub listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl LocalSocket {
    /// The file of an agent that was killed is replaced; one that somebody listens on is not. It is
    /// never there with other rights than the owner's.
    pub async fn bind(path: &Path) -> Result<Self, ListenError> {
        let error = |why: io::Error| ListenError::Socket { path: path.to_owned(), why };
        let answered = tokio::time::timeout(ASK_FOR, UnixStream::connect(path)).await;
        match answered {
            Ok(Err(_)) => {}
            // A full queue is somebody's, too.
            Ok(Ok(_)) | Err(_) => {
                return Err(error(io::Error::other("somebody listens there already")));
            }
        }
        if std::fs::symlink_metadata(path).is_ok_and(|found| !is_socket(&found)) {
            return Err(error(io::Error::other("there is a file of that name")));
        }
        let mut new = path.as_os_str().to_owned();
        new.push(".n");
        let new = PathBuf::from(new);
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(error)?;
        let placed = || {
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
            let found = std::fs::symlink_metadata(&new)?;
            std::fs::rename(&new, path)?;
            Ok((found.dev(), found.ino()))
        };
        match placed() {
            Ok(file) => Ok(Self { listener, path: path.to_owned(), file }),
            Err(why) => {
                let _ = std::fs::remove_file(&new);
                Err(error(why))
            }
        }
    }
}

fn is_socket(found: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_socket()
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
