//! Programs of tests/probes and tests/bypass that have to be compiled: once per test process, then put where a lab's commands can read them.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{Lab, need, netns::PATH, process::Running};

/// Name, source, and the compiler's words; `OUT` and `SOURCE` stand for paths.
const PROGRAMS: [(&str, &str, &[&str]); 10] = [
    ("resolve-glibc", "resolve.c", &["cc", "-O1", "-o", "OUT", "SOURCE"]),
    ("resolve-musl", "resolve.c", &["musl-gcc", "-static", "-O1", "-o", "OUT", "SOURCE"]),
    ("resolve-cares", "resolve.c", &["cc", "-DCARES", "-O1", "-o", "OUT", "SOURCE", "-lcares"]),
    ("resolve-go", "resolve.go", &["go", "build", "-o", "OUT", "SOURCE"]),
    ("Resolve.class", "Resolve.java", &["javac", "-d", ".", "SOURCE"]),
    ("clock.so", "clock.c", &["cc", "-shared", "-fPIC", "-O1", "-o", "OUT", "SOURCE"]),
    ("flood", "flood.c", &["cc", "-O1", "-o", "OUT", "SOURCE"]),
    ("race", "race.c", &["cc", "-O1", "-o", "OUT", "SOURCE"]),
    ("uring", "../bypass/uring.c", &["cc", "-O1", "-o", "OUT", "SOURCE"]),
    ("xdp", "../bypass/xdp.c", &["cc", "-O1", "-o", "OUT", "SOURCE"]),
];

/// Compiling is slow where the machine is busy.
const PATIENCE: Duration = Duration::from_secs(120);

impl Lab {
    /// Puts a compiled probe into the lab's directory; returns the path.
    pub fn compiled(&self, name: &str) -> String {
        static MADE: Mutex<Option<HashMap<String, Arc<Vec<u8>>>>> = Mutex::new(None);
        // One at a time: a second compiler would only take CPU time from the first.
        let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let program = made.get_or_insert_default().entry(name.to_owned()).or_insert_with(|| Arc::new(compile(name)));
        let path = self.directory().join(name);
        // Written by another process: a descriptor of ours, open for writing, would go along with any child that another
        // thread starts meanwhile, and then nobody could execute the file.
        let mut install = Command::new("install");
        install.arg("-m755").arg("/dev/stdin").arg(&path);
        let mut install = Running::spawn(install);
        install.feed(program);
        install.finish(PATIENCE).exits(0);
        path.display().to_string()
    }
}

fn compile(name: &str) -> Vec<u8> {
    let known = PROGRAMS.iter().find(|(known, ..)| *known == name);
    let (_, source, words) = known.unwrap_or_else(|| panic!("no compiled probe is called {name}"));
    need(words[0]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("probes").join(source);
    let directory = tempfile::tempdir().expect("a directory to compile in");
    let out = directory.path().join(name);
    let mut compiler = Command::new(words[0]);
    for word in &words[1..] {
        match *word {
            "OUT" => compiler.arg(&out),
            "SOURCE" => compiler.arg(&source),
            word => compiler.arg(word),
        };
    }
    compiler.current_dir(directory.path()).env_clear().env("PATH", PATH).env("HOME", directory.path());
    // Go: without the C library its resolver is its own.
    compiler.envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off")]);
    Running::spawn(compiler).finish(PATIENCE).exits(0);
    fs::read(&out).unwrap_or_else(|error| panic!("{}: {error}", out.display()))
}
