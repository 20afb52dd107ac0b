//! A name that no line allows, asked of the sandbox's own name service.

use super::report::{NOBODYS, Outcome, Proof, Row};
use crate::{
    policy::{Mode, NameTable, NameVerdict, Policy},
    sandbox::View,
};
use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

const TECHNIQUE: &str = "dns_tunnel";
const AT: &str = "dns";
/// Longer than a server could take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ends of names that nobody has (RFC 2606). Several, since a policy may allow what is below one.
const ENDS: [&str; 3] = ["example", "test", "invalid"];

/// Data in a name, under the only listener that the sandbox reaches.
pub(super) fn row(view: &View) -> Row {
    let Some((netns, port)) = &view.listener else {
        return Row::told(TECHNIQUE, AT, Outcome::NotApplicable, "nobody answers names");
    };
    if view.policy.mode == Mode::Observe {
        // A question would go to a server.
        return Row::told(TECHNIQUE, AT, Outcome::Leaked, "the policy only observes: every name is asked for");
    }
    let Some(name) = unlisted(&view.policy) else {
        return Row::told(
            TECHNIQUE,
            AT,
            Outcome::NotApplicable,
            "the policy allows every name that a probe could ask for",
        );
    };
    let shown = |outcome| Row::shown(TECHNIQUE, AT, outcome, Proof::Answer);
    let netns = match netns {
        Ok(netns) => netns,
        Err(error) => return shown(Outcome::NotShown).because(error.to_string()),
    };
    match netns.enter(|| ask(*port, &name)) {
        Ok(Ok(answer)) if is_refusal(&answer) => shown(Outcome::Contained),
        Ok(Ok(_)) => shown(Outcome::Leaked).because(format!("{name} was not refused: a server was asked for it")),
        Ok(Err(error)) => shown(Outcome::NotShown).because(format!("no answer ({error})")),
        Err(error) => shown(Outcome::NotShown).because(error.to_string()),
    }
}

/// 32 hex digits below a name of nobody's: what a tunnel would look like.
fn unlisted(policy: &Policy) -> Option<String> {
    let word = format!("{:032x}", rand::random::<u128>());
    let table = NameTable::new(policy);
    let mut names = ENDS.iter().map(|end| format!("{word}{NOBODYS}{end}"));
    names.find(|name| {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        !matches!(table.verdict(&labels), NameVerdict::Allow { .. })
    })
}

fn ask(port: u16, name: &str) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&query(name))?;
    let mut answer = vec![0; 1232];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// RFC 1035, 4.1, and an OPT record (RFC 6891), without which no extended error is told.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0xe9, 0x53, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        // Labels of ours are 32 bytes at most.
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

/// Extended error 15, "blocked" (RFC 8914): `dns::reply` writes it where the policy refuses, and passes no server's on.
fn is_refusal(answer: &[u8]) -> bool {
    const EXTENDED_ERROR: [u8; 2] = [0, 15];
    const BLOCKED: [u8; 2] = [0, 15];
    const OPT: [u8; 3] = [0, 0, 41];
    let Some(opt) = answer.windows(OPT.len()).rposition(|window| window == OPT) else { return false };
    // Root name and type, size, extended code, version, flags, length; then options of code, length, value.
    let mut options = answer.get(opt + 11..).unwrap_or_default();
    while let Some((&[code_high, code_low, high, low], rest)) = options.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if [code_high, code_low] == EXTENDED_ERROR && rest.starts_with(&BLOCKED) {
            return true;
        }
        options = rest.get(length..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_by_policy_is_one() {
        let opt = |options: &[u8]| {
            let head = [0xe9, 0x53, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0];
            [&head[..], &(options.len() as u16).to_be_bytes(), options].concat()
        };
        assert!(is_refusal(&opt(&[0, 15, 0, 4, 0, 15, b'n', b'o'])));
        assert!(is_refusal(&opt(&[0, 10, 0, 2, 7, 7, 0, 15, 0, 2, 0, 15])));
        assert!(!is_refusal(&opt(&[0, 15, 0, 2, 0, 22])), "no server answered");
        assert!(!is_refusal(&opt(&[])) && !is_refusal(&[]) && !is_refusal(b"\xe9\x53\x81\x83"));
    }

    #[test]
    fn a_name_is_asked_for_that_the_policy_does_not_allow() {
        let ends = |allow: &str| {
            let policy = Policy::from_toml(&format!("version = 1\n[allow]\nnames = [{allow}]\n")).unwrap();
            unlisted(&policy).map(|name| name.rsplit('.').next().unwrap().to_owned())
        };
        assert_eq!(ends("").as_deref(), Some("example"));
        assert_eq!(ends("\"*.egressd-verify.example\"").as_deref(), Some("test"));
    }
}
