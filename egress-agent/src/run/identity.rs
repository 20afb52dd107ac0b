//! As whom CMD runs: the user who called sudo, else the caller, else whom `--user` names.

use nix::unistd::{Gid, Group, Uid, User, getgid, getgrouplist, getgroups, getuid};
use std::{
    ffi::{CString, OsStr, OsString},
    io,
    path::PathBuf,
};

/// Members of these groups reach a daemon or a disk that acts for them outside any sandbox.
const DOORS: [&str; 6] = ["docker", "lxd", "incus", "incus-admin", "libvirt", "disk"];

/// The user that CMD runs as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// User id: real, effective, saved.
    pub uid: u32,
    /// Group id: real, effective, saved.
    pub gid: u32,
    /// Supplementary groups, less those that reach out of the sandbox.
    pub groups: Vec<u32>,
    /// Home directory; `/` for a user without an account.
    pub home: PathBuf,
    /// Login name; the number for a user without an account.
    pub name: OsString,
    /// True where this is another user than the caller, so that HOME, USER and LOGNAME must change.
    pub switched: bool,
}

/// Why no user can be found for CMD.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The name has no account.
    #[error("--user {0}: no such user; give a name of this host, or UID:GID")]
    NoUser(String),
    /// A number without an account does not tell its group.
    #[error("--user {0}: no account has this number; name the group as well: --user {0}:GID")]
    NoGroup(u32),
    /// Neither a name nor numbers.
    #[error("--user {0}: write NAME, UID or UID:GID, with numbers below 4294967295")]
    Syntax(String),
    /// The environment that sudo sets is damaged.
    #[error("{name}={} is no id; name the user: --user NAME", value.display())]
    SudoId {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: OsString,
    },
    /// Only root changes users.
    #[error("uid {caller} cannot run the command as uid {uid}, gid {gid}; use sudo, or leave --user out")]
    NotRoot {
        /// Who calls.
        caller: u32,
        /// Who was asked for.
        uid: u32,
        /// With which group.
        gid: u32,
    },
    /// A group that cannot be dropped, because it is the primary one.
    #[error(
        "group {name} ({gid}) reaches out of every sandbox and cannot be the command's own; name another: --user UID:GID"
    )]
    Door {
        /// The group.
        gid: u32,
        /// Its name.
        name: String,
    },
    /// The account database did not answer.
    #[error("cannot look up {what} in the account database")]
    LookUp {
        /// User, group or membership.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// Who started egressd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// SUDO_UID of the environment. Believed from root only: anybody else can set it.
    pub sudo_uid: Option<OsString>,
    /// SUDO_GID of the environment.
    pub sudo_gid: Option<OsString>,
}

impl Caller {
    /// This process, with the environment that it was started with.
    pub fn current(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, IdentityError> {
        let groups = getgroups().map_err(look_up("supplementary groups"))?;
        Ok(Self {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            sudo_uid: variable("SUDO_UID"),
            sudo_gid: variable("SUDO_GID"),
        })
    }
}

/// An account of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

/// The account database. [`HostAccounts`] is the host's.
pub trait Accounts {
    /// The account with this number.
    fn by_uid(&self, uid: u32) -> Result<Option<Account>, IdentityError>;
    /// The account with this name.
    fn by_name(&self, name: &str) -> Result<Option<Account>, IdentityError>;
    /// All groups of an account, the given one among them.
    fn groups(&self, name: &str, gid: u32) -> Result<Vec<u32>, IdentityError>;
    /// Name of a group.
    fn group_name(&self, gid: u32) -> Result<Option<String>, IdentityError>;
}

/// The host's account database (NSS).
#[derive(Clone, Copy, Debug)]
pub struct HostAccounts;

/// Finds the user for CMD. `user` is the argument of `--user`: `NAME`, `UID` or `UID:GID`.
pub fn identity(caller: &Caller, user: Option<&str>, accounts: &impl Accounts) -> Result<Identity, IdentityError> {
    let (account, own_gid) = match (user, caller.uid, &caller.sudo_uid) {
        (Some(user), ..) => named(user, accounts)?,
        (None, 0, Some(sudo_uid)) => {
            let uid = sudo_id("SUDO_UID", sudo_uid)?;
            let gid = caller.sudo_gid.as_ref().map(|gid| sudo_id("SUDO_GID", gid)).transpose()?;
            (numbered(uid, gid, accounts)?, None)
        }
        (None, uid, _) => (numbered(uid, Some(caller.gid), accounts)?, None),
    };
    let (uid, gid) = (account.uid, account.gid);
    let switched = uid != caller.uid;
    if caller.uid != 0 && (switched || gid != caller.gid) {
        return Err(IdentityError::NotRoot { caller: caller.uid, uid, gid });
    }
    let mut groups = match own_gid {
        // A group that was named is meant alone.
        Some(gid) => vec![gid],
        None if !switched && gid == caller.gid => caller.groups.clone(),
        None => accounts.groups(&account.name, gid)?,
    };
    if let Some(name) = door(gid, accounts)? {
        return Err(IdentityError::Door { gid, name });
    }
    let mut doors = Vec::new();
    for &gid in &groups {
        if door(gid, accounts)?.is_some() {
            doors.push(gid);
        }
    }
    groups.retain(|gid| !doors.contains(gid));
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity { uid, gid, groups, home: account.home, name: account.name.into(), switched })
}

/// The account, and the group where the argument names one.
fn named(user: &str, accounts: &impl Accounts) -> Result<(Account, Option<u32>), IdentityError> {
    let syntax = || IdentityError::Syntax(user.to_owned());
    let (who, gid) = match user.split_once(':') {
        Some((who, gid)) => (who, Some(id(gid).ok_or_else(syntax)?)),
        None => (user, None),
    };
    if who.is_empty() {
        return Err(syntax());
    }
    if who.bytes().all(|byte| byte.is_ascii_digit()) {
        let uid = id(who).ok_or_else(syntax)?;
        return Ok((numbered(uid, gid, accounts)?, gid));
    }
    let account = accounts.by_name(who)?.ok_or_else(|| IdentityError::NoUser(who.to_owned()))?;
    Ok((Account { gid: gid.unwrap_or(account.gid), ..account }, gid))
}

fn numbered(uid: u32, gid: Option<u32>, accounts: &impl Accounts) -> Result<Account, IdentityError> {
    match (accounts.by_uid(uid)?, gid) {
        (Some(account), gid) => Ok(Account { gid: gid.unwrap_or(account.gid), ..account }),
        (None, Some(gid)) => Ok(Account { name: uid.to_string(), uid, gid, home: "/".into() }),
        (None, None) => Err(IdentityError::NoGroup(uid)),
    }
}

/// All ones means "leave it as it is" to setresuid and setresgid, so it is no id.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

fn sudo_id(name: &'static str, value: &OsStr) -> Result<u32, IdentityError> {
    value.to_str().and_then(id).ok_or_else(|| IdentityError::SudoId { name, value: value.to_owned() })
}

fn door(gid: u32, accounts: &impl Accounts) -> Result<Option<String>, IdentityError> {
    Ok(accounts.group_name(gid)?.filter(|name| DOORS.contains(&name.as_str())))
}

fn look_up(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> IdentityError {
    move |source| IdentityError::LookUp { what: what.into(), source: source.into() }
}

impl Accounts for HostAccounts {
    fn by_uid(&self, uid: u32) -> Result<Option<Account>, IdentityError> {
        Ok(User::from_uid(Uid::from_raw(uid)).map_err(look_up(format!("user {uid}")))?.map(Account::from))
    }

    fn by_name(&self, name: &str) -> Result<Option<Account>, IdentityError> {
        Ok(User::from_name(name).map_err(look_up(format!("user {name}")))?.map(Account::from))
    }

    fn groups(&self, name: &str, gid: u32) -> Result<Vec<u32>, IdentityError> {
        // A name with a NUL byte has no account, so it has no groups either.
        let Ok(c_name) = CString::new(name) else { return Ok(vec![gid]) };
        let groups = getgrouplist(&c_name, Gid::from_raw(gid)).map_err(look_up(format!("groups of {name}")))?;
        Ok(groups.into_iter().map(Gid::as_raw).collect())
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, IdentityError> {
        let group = Group::from_gid(Gid::from_raw(gid)).map_err(look_up(format!("group {gid}")))?;
        Ok(group.map(|group| group.name))
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
