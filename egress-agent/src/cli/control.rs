//! How `egressd reload` reaches whoever serves a sandbox: a socket beside its record, in a directory of root's alone. One request
//! for each connection, a line of JSON each way.

use super::{
    exit::{Refused, message},
    policy_flags::PolicyFlags,
};
use anyhow::{Context as _, Result};
use egress_agent::{policy::Policy, sandbox::Sandbox};
use nix::fcntl::{OFlag, open};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

const SOCKET: &str = "control";
/// Whoever asks has written everything before it connects.
const PATIENCE: Duration = Duration::from_secs(5);
/// A policy whose names have to resolve first takes ten seconds; others may wait for the same sandbox before.
const UPDATE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to take a request where the first failed: the process may have no descriptor left.
const RESPITE: Duration = Duration::from_secs(1);
/// More than a policy that fills every map.
const REQUEST_MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Request {
    /// TOML; without, the flags and files that the sandbox was made with are read again.
    policy: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    InForce { generation: u64 },
    Refused { why: String },
}

/// A sandbox that is served, until somebody takes it out to end it.
#[derive(Clone)]
pub(super) struct Served(Arc<Mutex<Option<Sandbox>>>);

impl Served {
    fn lock(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks something of it; `None` once it was taken out.
    pub(super) fn look<T>(&self, ask: impl FnOnce(&Sandbox) -> T) -> Option<T> {
        self.lock().as_ref().map(ask)
    }

    /// Takes it out: no request finds it any more.
    pub(super) fn take(&self) -> Option<Sandbox> {
        self.lock().take()
    }
}

/// Takes requests for a sandbox, in a thread that ends with the process.
pub(super) fn serve(sandbox: Sandbox, flags: PolicyFlags) -> Result<Served> {
    let directory = sandbox.directory();
    let served = Served(Arc::new(Mutex::new(Some(sandbox))));
    // One that a killed owner left is nobody's.
    match fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the old control socket");
        }
        _ => {}
    }
    let listener = at(&directory, UnixListener::bind).context("cannot make the control socket")?;
    let asked = served.clone();
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                let said = match stream {
                    Ok(stream) => answer(stream, &asked, &flags),
                    Err(error) => {
                        thread::sleep(RESPITE);
                        Err(error)
                    }
                };
                if let Err(error) = said {
                    tracing::warn!(%error, "a reload was not answered");
                }
            }
        })
        .context("cannot start a thread for reloads")?;
    Ok(served)
}

fn answer(mut stream: UnixStream, served: &Served, flags: &PolicyFlags) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    (&stream).take(REQUEST_MAX_BYTES).read_to_end(&mut text)?;
    let answer = match update(&text, served, flags) {
        Ok(generation) => Answer::InForce { generation },
        Err(error) => Answer::Refused { why: message(&error) },
    };
    stream.write_all(&serde_json::to_vec(&answer)?)
}

fn update(request: &[u8], served: &Served, flags: &PolicyFlags) -> Result<u64> {
    let request: Request = serde_json::from_slice(request).context("no request of egressd reload's")?;
    let policy = match request.policy {
        Some(text) => Policy::from_toml(&text)?,
        None => flags.clone().load()?,
    };
    let mut served = served.lock();
    let sandbox = served.as_mut().context("the sandbox is ending")?;
    sandbox.update(policy)?;
    Ok(sandbox.generation())
}

/// Asks whoever serves the sandbox of this directory; the number of the policy that is in force then.
pub(super) fn ask(directory: &Path, policy: Option<&Policy>) -> Result<u64> {
    let mut stream = match at(directory, UnixStream::connect) {
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            return Err(Refused::Unserved.into());
        }
        stream => stream.context("cannot reach who serves the sandbox")?,
    };
    let request = serde_json::to_vec(&Request { policy: policy.map(Policy::to_toml) })?;
    let mut text = Vec::new();
    stream
        .set_read_timeout(Some(UPDATE_PATIENCE))
        .and_then(|()| stream.write_all(&request))
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut text))
        .context("who serves the sandbox does not answer")?;
    if text.is_empty() {
        return Err(Refused::Unserved.into());
    }
    match serde_json::from_slice(&text).context("who serves the sandbox is another version of egressd")? {
        Answer::InForce { generation } => Ok(generation),
        Answer::Refused { why } => Err(Refused::Reload(why).into()),
    }
}

/// Through a descriptor of the directory: the address of a socket has 108 octets (unix(7)), and a sandbox's name may be longer.
fn at<T>(directory: &Path, act: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let fd: OwnedFd =
        open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    act(PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).join(SOCKET))
}
