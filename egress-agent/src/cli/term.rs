//! The only place that writes to stdout and stderr, and that asks what they are.

use super::exit::Closed;
use egress_agent::observe::{escape, event::Verdict};
use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal as _, Write as _},
};
use tracing_subscriber::EnvFilter;

/// What the log filter is read from: `EGRESSD_LOG=debug`, or `EGRESSD_LOG=egress_agent::dns=trace`.
const LOG: &str = "EGRESSD_LOG";

/// Flags without a twin in the environment: whoever can set a variable must not be able to open something.
const WIDENING: [&str; 7] = [
    "EGRESSD_ALLOW",
    "EGRESSD_PROXY",
    "EGRESSD_GATEWAY",
    "EGRESSD_OBSERVE",
    "EGRESSD_USER",
    "EGRESSD_KEEP_CAP",
    "EGRESSD_KEEP_FD",
];

/// One line on stdout. Fails with [`Closed`] once the reader is gone.
pub(super) fn out(line: &str) -> anyhow::Result<()> {
    write_out(&[line.as_bytes(), b"\n"].concat())
}

/// Text on stdout as it is.
pub(super) fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
    }
}

/// One line of egressd's own on stderr.
pub(super) fn say(message: &str) {
    raw_say(&format!("egressd: {}", escape::line(message)));
}

/// A line on stderr that already says who speaks.
pub(super) fn raw_say(line: &str) {
    // Where stderr is gone there is nobody left to tell.
    drop(io::stderr().write_all(format!("{line}\n").as_bytes()));
}

/// Help and usage errors, each where clap sends it.
pub(super) fn show(error: &clap::Error) {
    // A reader that went away needs no help.
    drop(error.print());
}

/// Logs go to stderr: stdout belongs to CMD.
pub(super) fn trace() {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|error| {
        if std::env::var_os(LOG).is_some() {
            say(&format!("{LOG}: {error}; using warn"));
        }
        EnvFilter::new("warn")
    });
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time();
    // Tests run several command lines in one process; the first subscriber stays.
    drop(subscriber.try_init());
    let build = egress_agent::sandbox::build();
    tracing::info!(
        version = build.version,
        revision = build.revision,
        dirty = build.dirty,
        object = build.object,
        "egressd"
    );
}

/// Says which variables were set in vain.
pub(super) fn warn_of_widening_variables(names: impl Iterator<Item = OsString>) {
    for name in names.filter(|name| WIDENING.iter().any(|widening| name == widening)) {
        let name = name.to_string_lossy();
        let flag = name.trim_start_matches("EGRESSD_").to_ascii_lowercase().replace('_', "-");
        say(&format!("{name} is ignored: what opens something must be typed, as --{flag}"));
    }
}

/// True where a table can be shown.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// <https://no-color.org>: any value that is not empty.
fn colourful(stream: &impl io::IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").as_deref() != Some(OsStr::new("dumb"))
}

/// A verdict for stdout, in colour where that is wanted.
pub(super) fn verdict(verdict: Verdict) -> String {
    let (word, colour) = match verdict {
        Verdict::Allow => ("allow", "32"),
        Verdict::Deny => ("deny", "31"),
        Verdict::WouldDeny => ("would_deny", "33"),
    };
    if colourful(&io::stdout()) { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Rows of cells: aligned under a header on a terminal, tab-separated and bare for programs.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Cells may hold what the sandbox chose: they are escaped here, except for the colours of [`verdict`].
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        write_out(self.render(is_terminal()).as_bytes())
    }

    fn render(&self, aligned: bool) -> String {
        let mut out = String::new();
        if !aligned {
            for row in &self.rows {
                out.push_str(&row.join("\t"));
                out.push('\n');
            }
            return out;
        }
        let header: Vec<String> = self.header.iter().map(|&cell| cell.to_owned()).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let width =
            |column: usize| lines().filter_map(|row| row.get(column)).map(|cell| visible(cell)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for row in lines() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - visible(cell) + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Characters that take room: colours take none.
fn visible(cell: &str) -> usize {
    let mut width = 0;
    let mut escape = false;
    for symbol in cell.chars() {
        match symbol {
            '\x1b' => escape = true,
            'm' if escape => escape = false,
            _ if escape => {}
            _ => width += 1,
        }
    }
    width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_for_people_and_bare_for_programs() {
        let mut table = Table::new(&["SANDBOX", "LEVEL"]);
        table.row(["ci".to_owned(), "\x1b[31mL1\x1b[0m".to_owned()]);
        table.row(["a-longer-name".to_owned(), "none".to_owned()]);
        assert_eq!(table.render(false), "ci\t\x1b[31mL1\x1b[0m\na-longer-name\tnone\n");
        assert_eq!(table.render(true), "SANDBOX        LEVEL\nci             \x1b[31mL1\x1b[0m\na-longer-name  none\n");
        assert_eq!(Table::new(&["A"]).render(true), "A\n");
    }
}
