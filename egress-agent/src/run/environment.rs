//! The environment that CMD is given.
//!
//! It is built before the clone and handed to exec: a variable that was unset later would still stand in
//! `/proc/PID/environ`, which shows the initial stack.

use super::{RunError, identity::Identity};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

/// One variable.
pub type Variable = (OsString, OsString);

/// Names with this beginning configure egressd and never reach CMD.
const RESERVED: &[u8] = b"EGRESSD_";

/// Splits an argument of `--env`.
///
/// # Errors
/// [`RunError::EnvSyntax`] without `=` or a name, [`RunError::EnvReserved`] for a name of egressd's own.
pub fn parse_variable(argument: &OsStr) -> Result<Variable, RunError> {
    let bytes = argument.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=');
    match at.map(|at| (&bytes[..at], &bytes[at + 1..])) {
        None | Some((b"", _)) => Err(RunError::EnvSyntax(argument.to_owned())),
        Some((name, _)) if name.starts_with(RESERVED) => Err(RunError::EnvReserved(argument.to_owned())),
        Some((name, value)) => Ok((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()))),
    }
}

/// What the caller has, less egressd's own names; with HOME, USER and LOGNAME of the user where CMD runs as another than
/// the caller; and with `added`, which wins over both. Order is kept, bytes are untouched.
pub fn environment(
    inherited: impl IntoIterator<Item = Variable>,
    identity: &Identity,
    added: &[Variable],
) -> Vec<Variable> {
    let mut all: Vec<Variable> =
        inherited.into_iter().filter(|(name, _)| !name.as_bytes().starts_with(RESERVED)).collect();
    if identity.switched {
        let name = identity.name.as_os_str();
        for (key, value) in [("HOME", identity.home.as_os_str()), ("USER", name), ("LOGNAME", name)] {
            set(&mut all, OsStr::new(key), value);
        }
    }
    for (name, value) in added {
        set(&mut all, name, value);
    }
    all
}

fn set(all: &mut Vec<Variable>, name: &OsStr, value: &OsStr) {
    match all.iter_mut().find(|(have, _)| have == name) {
        Some((_, old)) => value.clone_into(old),
        None => all.push((name.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<Variable> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn identity(switched: bool) -> Identity {
        Identity { uid: 1000, gid: 1000, groups: vec![], home: "/home/ann".into(), name: "ann".into(), switched }
    }

    #[test]
    fn only_reserved_names_are_scrubbed() {
        let inherited = variables(&[("A", "1"), ("EGRESSD_POLICY", "x"), ("EMPTY", ""), ("MY_EGRESSD_X", "2")]);
        let expected = variables(&[("A", "1"), ("EMPTY", ""), ("MY_EGRESSD_X", "2")]);
        assert_eq!(environment(inherited, &identity(false), &[]), expected);
    }

    #[test]
    fn bytes_are_untouched() {
        let odd = vec![(OsString::from_vec(b"E\xff".to_vec()), OsString::from_vec(b"@#$% \xc3\xa9=\xfe".to_vec()))];
        assert_eq!(environment(odd.clone(), &identity(false), &[]), odd);
    }

    #[test]
    fn a_switched_user_has_its_own_home_and_name() {
        let inherited = variables(&[("HOME", "/root"), ("USER", "root"), ("A", "1")]);
        let expected = variables(&[("HOME", "/home/ann"), ("USER", "ann"), ("A", "1"), ("LOGNAME", "ann")]);
        assert_eq!(environment(inherited.clone(), &identity(true), &[]), expected);
        assert_eq!(environment(inherited.clone(), &identity(false), &[]), inherited);
    }

    #[test]
    fn added_variables_win() {
        let added = variables(&[("HOME", "/tmp"), ("X", "1")]);
        let all = environment(variables(&[("HOME", "/root")]), &identity(true), &added);
        assert_eq!(all, variables(&[("HOME", "/tmp"), ("USER", "ann"), ("LOGNAME", "ann"), ("X", "1")]));
    }

    #[test]
    fn env_arguments_are_split_at_the_first_equals_sign() {
        assert_eq!(parse_variable(OsStr::new("A=b=c")).unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(parse_variable(OsStr::new("A=")).unwrap(), ("A".into(), "".into()));
        assert!(matches!(parse_variable(OsStr::new("A")), Err(RunError::EnvSyntax(_))));
        assert!(matches!(parse_variable(OsStr::new("=a")), Err(RunError::EnvSyntax(_))));
        assert!(matches!(parse_variable(OsStr::new("EGRESSD_X=1")), Err(RunError::EnvReserved(_))));
    }
}
