//! A sandbox that stays: a small command server runs inside, and a test asks it for one thing after the other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    Lab, PYTHON,
    launch::Launch,
    process::{Output, Running},
    wait::patient,
};

const SERVER: [&str; 5] = [PYTHON, "-I", "-u", "-c", include_str!("cmdsrv.py")];

/// A live sandbox. Dropping it ends it; [`Self::end`] waits for its exit status.
#[derive(Debug)]
pub struct Inside {
    running: Running,
    asked: usize,
}

impl Inside {
    /// Starts `launch` with the command server as its program and waits until it answers.
    #[track_caller]
    pub fn start(launch: Launch<'_>) -> Self {
        Self::of(launch.program(&SERVER).spawn())
    }

    /// The same command server in the box without egressd: the control.
    #[track_caller]
    pub fn beside(lab: &Lab) -> Self {
        let mut command = lab.box_ns().command(SERVER[0]);
        command.args(&SERVER[1..]);
        Self::of(Running::spawn(command))
    }

    #[track_caller]
    fn of(running: Running) -> Self {
        let mut inside = Self { running, asked: 0 };
        inside.ask("true").exits(0);
        inside
    }

    /// Runs a shell script inside and waits for its end.
    #[track_caller]
    pub fn ask(&mut self, script: &str) -> Output {
        let id = self.begin(script);
        self.answer(id)
    }

    /// Starts a shell script inside; [`Self::answer`] waits for it.
    #[track_caller]
    pub fn begin(&mut self, script: &str) -> usize {
        self.asked += 1;
        let line = json!({ "id": self.asked, "script": script }).to_string() + "\n";
        self.running.write(line.as_bytes());
        self.asked
    }

    /// Waits for the end of what [`Self::begin`] started.
    #[track_caller]
    pub fn answer(&mut self, id: usize) -> Output {
        let end = Instant::now() + patient(Duration::from_secs(30));
        loop {
            let found = self
                .running
                .stdout()
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .find_map(|answer| read(&answer, id));
            if let Some(output) = found {
                return output;
            }
            assert!(self.running.is_alive() && Instant::now() < end, "no answer from inside: {}", self.running.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The process of `egressd run`.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Ends the command server and returns how `egressd run` ended.
    #[track_caller]
    pub fn end(self) -> Output {
        self.running.finish(Duration::from_secs(600))
    }
}

fn read(answer: &Value, id: usize) -> Option<Output> {
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let status = answer["status"].as_i64().unwrap_or(-1) as i32;
    (answer["id"].as_u64() == Some(id as u64)).then(|| Output {
        code: (status >= 0).then_some(status),
        signal: (status < 0).then_some(-status),
        stdout: text("stdout"),
        stderr: text("stderr"),
        took: Duration::from_secs_f64(answer["took"].as_f64().unwrap_or_default()),
    })
}
