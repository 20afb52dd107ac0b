//! Names behind learned addresses, for people: written beside a sandbox's events whenever one is learned, read by `explain`.
//! Nothing is decided by it.

use serde::{Deserialize, Serialize};
use std::{fs, io, net::IpAddr, path::Path};

const FILE: &str = "names.json";

/// One name that led to an address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Learned {
    /// The name asked for, escaped.
    pub name: String,
    /// An address of its answer.
    pub address: IpAddr,
}

/// Writes all that are live, whole or not at all.
pub fn write(directory: &Path, learned: &[Learned]) -> io::Result<()> {
    let draft = directory.join(".names.json");
    fs::write(&draft, serde_json::to_vec(learned)?)?;
    fs::rename(draft, directory.join(FILE))
}

/// Reads them; none where nothing was learned yet.
pub fn read(directory: &Path) -> io::Result<Vec<Learned>> {
    match fs::read(directory.join(FILE)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
