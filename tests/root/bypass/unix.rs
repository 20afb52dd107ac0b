//! Unix sockets lead to processes outside: `allow.unix` names those that may be reached.

use crate::job::{Job, ready};
use lab::{Lab, PYTHON, Running, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// Somebody outside who listens at `@TOKEN-good`, `@TOKEN-bad` and a path, and tells what it got.
const LISTENER: &str = "import selectors, socket, sys
token, path = sys.argv[1:]
doors = selectors.DefaultSelector()
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    for name in ('\\0' + token + '-good', '\\0' + token + '-bad', path):
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(name + str(int(kind)))
        if kind != socket.SOCK_DGRAM:
            sock.listen()
        doors.register(sock, selectors.EVENT_READ)
print('ready', flush=True)
while True:
    for key, _ in doors.select():
        door = key.fileobj
        if door.type == socket.SOCK_DGRAM:
            print('got', door.recv(100).decode(), flush=True)
        else:
            guest, _ = door.accept()
            print('got', guest.recv(100).decode(), flush=True)";

/// Knocks at each of them in every way that there is, and at a socket of its own.
const CLIENT: &str = "import errno, os, socket, sys
token, path, word = sys.argv[1:]
def told(name, work):
    try:
        work()
        print(f'{name}=ok')
    except OSError as error:
        print(f'{name}={errno.errorcode[error.errno]}')
def connected(kind, to, what):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.connect(to)
    sock.send(what)
def sent(kind, to, what):
    socket.socket(socket.AF_UNIX, kind).sendto(what, to)
for door, at in (('good', '\\0' + token + '-good'), ('bad', '\\0' + token + '-bad'), ('path', path)):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        name = f'{door}{int(kind)}'
        told(name, lambda: connected(kind, at + str(int(kind)), f'{word}-{name};'.encode()))
    told(f'{door}sent', lambda: sent(socket.SOCK_DGRAM, at + '2', f'{word}-{door}sent;'.encode()))
link = os.path.join(os.getcwd(), word)
os.symlink(path + '1', link)
told('link', lambda: connected(socket.SOCK_STREAM, link, f'{word}-link;'.encode()))
told('longer', lambda: connected(socket.SOCK_STREAM, '\\0' + token + '-good1\\0', b'x'))
told('shorter', lambda: connected(socket.SOCK_STREAM, '\\0' + token + '-good', b'x'))
told('pair', lambda: [one.send(b'x') for one in socket.socketpair()])";

struct Doors<'l> {
    lab: &'l Lab,
    listener: Running,
    client: String,
}

impl<'l> Doors<'l> {
    fn new(lab: &'l Lab) -> Self {
        let (token, path) = (lab.token("unix"), lab.directory().join("door"));
        let mut command = lab.box_ns().command("sh");
        let script = lab.file("listener.py", LISTENER);
        let words = format!("umask 0; exec {PYTHON} -I {} {token} {}", script.display(), path.display());
        command.args(["-c", &words]);
        let mut listener = Running::spawn(command);
        listener.says("ready", SOON);
        let client = format!("{PYTHON} -I {} {token} {}", lab.file("client.py", CLIENT).display(), path.display());
        Self { lab, listener, client }
    }

    fn policy(&self, unix: &str) -> std::path::PathBuf {
        let unix = unix.replace("TOKEN", &self.lab.token("unix"));
        self.lab.file("unix.toml", &format!("version = 1\n[allow]\nunix = {unix}\n"))
    }

    /// What of `word` got to the other side, once these many did.
    fn got(&self, word: &str, count: usize) -> Vec<String> {
        let names = || {
            let said = self.listener.stdout();
            let lines = said.lines().filter_map(|line| line.strip_prefix("got ")?.strip_prefix(&format!("{word}-")));
            let mut names: Vec<_> = lines.map(|name| name.trim_end_matches(';').to_owned()).collect();
            names.sort();
            names
        };
        until(SOON, "they got through", || names().len() >= count);
        names()
    }
}

const GOOD: [&str; 4] = ["good1", "good2", "good5", "goodsent"];
const CLOSED: [&str; 10] = ["bad1", "bad2", "bad5", "badsent", "path1", "path2", "path5", "pathsent", "link", "longer"];

#[test]
fn abstract_names() {
    let lab = Lab::new();
    let (doors, job) = (Doors::new(&lab), Job::new(&lab, "job"));
    let all: Vec<&str> = GOOD.iter().chain(&CLOSED[..9]).copied().collect();
    for (word, unix, open) in [
        ("listed", "[\"@TOKEN-good1\", \"@TOKEN-good2\", \"@TOKEN-good5\"]", &GOOD[..]),
        ("none", "\"none\"", &[]),
        ("any", "\"any\"", &all),
    ] {
        let policy = doors.policy(unix);
        let attach = ready(job.attach("--allow 198.51.100.10").arg("--policy").arg(&policy));
        let output = job.sh(&format!("{} {word}", doors.client));
        output.exits(0).says("pair=ok");
        for name in GOOD.iter().chain(&CLOSED[..9]) {
            let want = if open.contains(name) { "ok" } else { "EPERM" };
            output.says(&format!("{name}={want}\n"));
        }
        let other = if word == "any" { "ECONNREFUSED" } else { "EPERM" };
        output.says(&format!("longer={other}\n")).says(&format!("shorter={other}\n"));
        let mut open: Vec<_> = open.to_vec();
        open.sort_unstable();
        assert_eq!(doors.got(word, open.len()), open, "{word}");
        crate::job::end(attach, nix::sys::signal::Signal::SIGTERM).exits(0);
    }
    // `run` does the same by the same hooks.
    let policy = doors.policy("[\"@TOKEN-good1\"]");
    let output = lab.egressd("run").arg("--policy").arg(&policy).sh(&format!("{} run", doors.client)).output();
    output.says("good1=ok\n").says("good2=EPERM\n").says("bad1=EPERM\n").says("path1=EPERM\n");
    assert_eq!(doors.got("run", 1), ["good1"]);
    // The control.
    lab.unconfined(&format!("{} control", doors.client)).exits(0);
    assert_eq!(doors.got("control", all.len()).len(), all.len());
}
