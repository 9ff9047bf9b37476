//! Where an agent can be found by its successor: a socket in the run directory, of this user alone.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::{Error, Link};

const NAME: &str = "takeover.sock";

/// The socket that successors connect to; goes when dropped, unless a successor has made its own.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Binds it in `dir`, which is made if it is not there, unless an agent has one there.
    pub fn bind(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(NAME);
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(Error::Occupied { path });
        }
        Self::succeed(dir)
    }

    /// The same in place of one that our predecessor may have.
    pub fn succeed(dir: &Path) -> Result<Self, Error> {
        let failed = |call| move |source| Error::System { call, object: dir.display().to_string(), source };
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            return Err(failed("create")(error));
        }
        let path = dir.join(NAME);
        // Made aside and renamed, so that there is always one, and none that others may open.
        let aside = dir.join(format!("{NAME}.{}", std::process::id()));
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(failed("bind a socket in"))?;
        let renamed = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&aside))
            .and_then(|made| fs::rename(&aside, &path).map(|()| made.ino()));
        match renamed {
            Ok(inode) => Ok(Self { listener, path, inode }),
            Err(error) => {
                let _ = fs::remove_file(&aside);
                Err(failed("put a socket in")(error))
            }
        }
    }

    /// The next one who connects.
    pub async fn accept(&self) -> Result<Link, Error> {
        let accepted = self.listener.accept().await;
        let (stream, _) = accepted.map_err(|source| Error::System {
            call: "accept at",
            object: self.path.display().to_string(),
            source,
        })?;
        Link::new(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the agent of `dir`; `None`: no agent is there.
pub async fn connect(dir: &Path) -> Result<Option<Link>, Error> {
    let path = dir.join(NAME);
    match UnixStream::connect(&path).await {
        Ok(stream) => Link::new(stream).map(Some),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(source) => Err(Error::System { call: "connect to", object: path.display().to_string(), source }),
    }
}
