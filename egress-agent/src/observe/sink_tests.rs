use super::*;
use crate::observe::event::{Kind, Subject};
use std::time::SystemTime;

fn event(name: &str) -> Event {
    let subject = Subject { sandbox: "s".into(), generation: 1, ..Subject::default() };
    Event::dns(Kind::Dns, SystemTime::UNIX_EPOCH, &subject, name)
}

fn names(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().dst_name.unwrap()).collect()
}

#[test]
fn every_subscriber_gets_every_event_until_the_sink_goes() {
    let sink = EventSink::new();
    let (one, two) = (sink.subscribe(QUEUE), sink.subscribe(QUEUE));
    drop(sink.subscribe(QUEUE));
    sink.emit(&event("a.test"));
    sink.clone().emit(&event("b.test"));
    assert_eq!(sink.outlets().subscribers.len(), 2, "the one that went is forgotten");
    drop(sink);
    let expected = [event("a.test"), event("b.test")];
    assert_eq!(one.collect::<Vec<_>>(), expected);
    assert_eq!(two.ready().collect::<Vec<_>>(), expected);
    assert_eq!(two.next_within(Duration::ZERO), Err(Ended));
}

#[test]
fn what_a_slow_reader_misses_is_counted_and_told() {
    let sink = EventSink::new();
    let (slow, quick) = (sink.subscribe(2), sink.subscribe(QUEUE));
    for n in 0..10 {
        sink.emit(&event(&format!("n{n}.test")));
    }
    let seen: Vec<_> = slow.ready().collect();
    assert_eq!(seen.len(), 3);
    assert_eq!((seen[0].event, seen[0].count, seen[0].sandbox.as_str()), (Kind::Lost, Some(8), "s"));
    assert_eq!(seen[2], event("n1.test"));
    assert_eq!(slow.next_within(Duration::ZERO), Ok(None), "told once");
    assert_eq!(quick.ready().count(), 10);
}

#[test]
fn asynchronous_readers_get_the_same() {
    let sink = EventSink::new();
    let mut slow = sink.subscribe_async(2);
    for n in 0..10 {
        sink.emit(&event(&format!("n{n}.test")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let lost = runtime.block_on(slow.next()).unwrap();
    assert_eq!((lost.event, lost.count), (Kind::Lost, Some(8)));
    assert_eq!(runtime.block_on(slow.next()), Some(event("n0.test")));
    drop(sink);
    assert_eq!(runtime.block_on(slow.next()), Some(event("n1.test")));
    assert_eq!(runtime.block_on(slow.next()), None);
    let sink = EventSink::new();
    drop(sink.subscribe_async(1));
    sink.emit(&event("a.test"));
    assert!(sink.outlets().subscribers.is_empty(), "the one that went is forgotten");
}

#[test]
fn the_file_is_rotated_and_no_line_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let line = event("n0.test").to_json_line().unwrap().len() as u64 + 1;
    let sink = EventSink::with_file(&path, 3 * line).unwrap();
    for n in 0..8 {
        sink.emit(&event(&format!("n{n}.test")));
    }
    assert_eq!(names(&rotated(&path)), ["n3.test", "n4.test", "n5.test"]);
    assert_eq!(names(&path), ["n6.test", "n7.test"]);
    drop(sink);
    EventSink::with_file(&path, 3 * line).unwrap().emit(&event("n8.test"));
    assert_eq!(names(&path), ["n6.test", "n7.test", "n8.test"], "a restart appends");
}

#[test]
fn a_link_in_place_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
    assert!(EventSink::with_file(&path, FILE_BYTES).is_err());
    assert!(!dir.path().join("elsewhere").exists());
    EventSink::with_file(&dir.path().join("plain"), FILE_BYTES).unwrap();
}

#[test]
fn lines_that_cannot_be_written_are_owed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let sink = EventSink::with_file(&path, FILE_BYTES).unwrap();
    let swap = |file: File| std::mem::replace(&mut sink.outlets().journal.as_mut().unwrap().file, file);
    let working = swap(OpenOptions::new().write(true).open("/dev/full").unwrap());
    sink.emit(&event("a.test"));
    sink.emit(&event("b.test"));
    drop(swap(working));
    sink.emit(&event("c.test"));
    let text = std::fs::read_to_string(&path).unwrap();
    let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].event, events[0].count), (Kind::Lost, Some(2)));
    assert_eq!(events[1], event("c.test"));
}
