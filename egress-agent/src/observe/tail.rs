//! Reads the event file of another process, across its rotation.

use super::{event::Event, sink::rotated};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// One event file, read from its oldest line on.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    reader: BufReader<File>,
    /// Line of the current file, for errors.
    line: u64,
    /// A line whose end was not written yet.
    partial: Vec<u8>,
}

/// Why a line of the file is no event.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The file cannot be read.
    #[error("cannot read the events in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word for it.
        source: io::Error,
    },
    /// A line is not an event of this schema.
    #[error("line {line} of {path} is not an event of egressd")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Tail {
    /// Opens the file, and the one that was rotated away before it if that is still there.
    pub fn open(path: &Path) -> Result<Self, TailError> {
        let file = File::open(rotated(path)).or_else(|_| File::open(path));
        let file = file.map_err(|source| TailError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), line: 0, partial: Vec::new() })
    }

    /// The next event that is there already; `None` when the reader has caught up (more may come).
    pub fn poll(&mut self) -> Result<Option<Event>, TailError> {
        loop {
            let read = self.reader.read_until(b'\n', &mut self.partial).map_err(|source| self.unreadable(source))?;
            if self.partial.ends_with(b"\n") {
                self.line += 1;
                let line = std::mem::take(&mut self.partial);
                return serde_json::from_slice(&line).map(Some).map_err(|source| TailError::Line {
                    path: self.path.clone(),
                    line: self.line,
                    source,
                });
            }
            if read == 0 && !self.next_file()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the current file if the one being read is no longer it. False if there is nothing to go on to.
    fn next_file(&mut self) -> Result<bool, TailError> {
        let current = match File::open(&self.path) {
            Ok(file) => file,
            // Between the two steps of a rotation, or after the end of the sandbox.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(self.unreadable(source)),
        };
        let inode = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let same =
            (|| Ok(inode(&current)? == inode(self.reader.get_ref())?))().map_err(|source| self.unreadable(source))?;
        if same {
            return Ok(false);
        }
        // The writer may have added lines to the old file between our last read and its rotation.
        if self.reader.fill_buf().is_ok_and(|rest| !rest.is_empty()) {
            return Ok(true);
        }
        self.reader = BufReader::new(current);
        self.partial.clear();
        self.line = 0;
        Ok(true)
    }

    fn unreadable(&self, source: io::Error) -> TailError {
        TailError::Read { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        event::{Kind, Subject},
        sink::EventSink,
    };
    use std::{io::Write as _, time::SystemTime};

    fn event(n: u32) -> Event {
        Event::dns(Kind::Dns, SystemTime::UNIX_EPOCH, &Subject::default(), &format!("n{n}.test"))
    }

    fn caught_up(tail: &mut Tail) -> Vec<Event> {
        std::iter::from_fn(|| tail.poll().unwrap()).collect()
    }

    #[test]
    fn a_reader_follows_the_file_through_its_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let sink = EventSink::with_file(&path, 2 * (event(0).to_json_line().unwrap().len() as u64 + 1)).unwrap();
        sink.emit(&event(0));
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(caught_up(&mut tail), [event(0)]);
        assert_eq!(caught_up(&mut tail), []);
        sink.emit(&event(1));
        sink.emit(&event(2));
        assert_eq!(caught_up(&mut tail), [event(1), event(2)]);
        let mut late = Tail::open(&path).unwrap();
        assert_eq!(caught_up(&mut late), [event(0), event(1), event(2)], "the older file comes first");
        sink.emit(&event(3));
        assert_eq!(caught_up(&mut late), [event(3)]);
    }

    #[test]
    fn half_a_line_waits_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let line = event(0).to_json_line().unwrap();
        let (head, rest) = line.split_at(20);
        let mut file = File::create(&path).unwrap();
        write!(file, "{head}").unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(caught_up(&mut tail), []);
        writeln!(file, "{rest}\nnot json").unwrap();
        assert_eq!(tail.poll().unwrap(), Some(event(0)));
        let error = tail.poll().unwrap_err();
        assert!(matches!(error, TailError::Line { line: 2, .. }), "{error}");
        assert!(matches!(Tail::open(&dir.path().join("absent")), Err(TailError::Read { .. })));
    }
}
