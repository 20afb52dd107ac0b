//! What people type. One file per verb; [`term`] alone writes to stdout and stderr, [`exit`] alone knows exit codes.

mod attach;
mod check;
mod control;
mod detach;
mod doctor;
mod events;
mod exit;
mod explain;
mod policy_flags;
mod preload;
mod reload;
mod run;
mod run_flags;
mod status;
mod summary_file;
mod term;
mod verify;
mod version;
mod which;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, error::ErrorKind};
use egress_agent::sandbox::Directories;
use exit::Exit;
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::ExitCode,
};

/// Decides in the kernel which destinations a sandbox may reach.
#[derive(Parser, Debug)]
#[command(
    name = "egressd",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Example: egressd run --allow github.com -- git clone https://github.com/owner/repository"
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    verb: Verb,
}

/// Where egressd keeps what it must find again.
#[derive(Args, Debug, Clone)]
struct Places {
    /// Keep events and names of sandboxes here, e.g. --state-dir /run/egressd-test
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "EGRESSD_STATE_DIR",
        hide_env_values = true,
        default_value = "/run/egressd"
    )]
    state_dir: PathBuf,
    /// Keep pinned hooks and maps here, e.g. --pin-dir /run/egressd-test/bpf [default: bpf below the state directory]
    #[arg(long, global = true, value_name = "DIR", env = "EGRESSD_PIN_DIR", hide_env_values = true)]
    pin_dir: Option<PathBuf>,
}

impl Places {
    fn directories(&self) -> Directories {
        let pin = self.pin_dir.clone().unwrap_or_else(|| self.state_dir.join("bpf"));
        Directories { state: self.state_dir.clone(), pin }
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    Run(Box<run_flags::Run>),
    Attach(Box<attach::Attach>),
    Detach(detach::Detach),
    Reload(Box<reload::Reload>),
    Status(status::Status),
    Events(events::Events),
    Explain(explain::Explain),
    Check(check::Check),
    Verify(verify::Verify),
    Preload(preload::Preload),
    Doctor(doctor::Doctor),
    Version(version::Version),
}

/// Verbs of the contract that are still to come. They are not listed, but typing one must not look like a typing error.
const LATER: [&str; 4] = ["suggest", "gc", "daemon", "hook"];

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    term::warn_of_widening_variables(std::env::vars_os().map(|(name, _)| name));
    command_line(&words).into()
}

/// Runs a command line and gives its exit code.
fn command_line(words: &[OsString]) -> u8 {
    let verb = verb_of(words);
    if let Some(later) = LATER.iter().find(|later| verb.is_some_and(|verb| verb == **later)) {
        term::say(&format!("{later} is not in this build; egressd --help lists what is"));
        return Exit::Usage.into();
    }
    let runs = verb.is_some_and(|verb| verb == "run");
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            term::show(&error);
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done.into(),
                _ if runs => exit::RUN_FAILED,
                _ => Exit::Usage.into(),
            };
        }
    };
    term::trace();
    let directories = cli.places.directories();
    match act(cli.verb, &directories) {
        Ok(code) => code,
        Err(error) if exit::is_closed(&error) => Exit::Done.into(),
        Err(error) => {
            term::say(&exit::message(&error));
            if runs { exit::of_run(&error) } else { Exit::of(&error) }
        }
    }
}

fn act(verb: Verb, directories: &Directories) -> Result<u8> {
    match verb {
        Verb::Run(run) => run::run(*run, directories),
        Verb::Attach(attach) => attach.act(directories),
        Verb::Detach(detach) => detach.act(directories),
        Verb::Reload(reload) => reload.act(directories),
        Verb::Status(status) => status.act(directories),
        Verb::Events(events) => events.act(directories),
        Verb::Explain(explain) => explain.act(directories),
        Verb::Check(check) => check.act(),
        Verb::Verify(verify) => verify.act(directories),
        Verb::Preload(preload) => preload.act(directories),
        Verb::Doctor(doctor) => doctor.act(),
        Verb::Version(version) => version.act(),
    }
}

/// The first word that is neither a flag nor a flag's value: clap tells it only for lines that it understood.
fn verb_of(words: &[OsString]) -> Option<&OsStr> {
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--state-dir" || word == "--pin-dir" {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            return Some(word);
        }
    }
    None
}

#[cfg(test)]
mod tests;
