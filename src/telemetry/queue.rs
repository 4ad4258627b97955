//! Between the daemon and the reader of its log: a bounded buffer and a thread that writes it out.
//!
//! A reader that stalls must stop nothing but the log. So the daemon never waits: what finds no
//! room is dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Room for some three thousand lines: a reader may rest for a second in the middle of a storm.
const ROOM: usize = 1 << 20;
/// What a burst left behind is given back to the system.
const USUAL: usize = 64 << 10;

/// Lines that were dropped since the process began.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The last line found no room, and nothing was read since.
static FULL: AtomicBool = AtomicBool::new(false);

/// How many lines of the log were dropped because it was not read fast enough, since the process
/// began.
#[must_use]
pub fn lines_dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// Whether a line of the log has a chance to be read.
#[must_use]
pub fn flows() -> bool {
    !FULL.load(Relaxed)
}

/// The end of the buffer into which lines are put. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    room: usize,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// The thread is writing what it took out.
    writing: bool,
}

impl Queue {
    /// A buffer that a thread of its own writes out to `out`.
    pub(super) fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::with_room(ROOM, out)
    }

    fn with_room(room: usize, out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), room });
        let theirs = shared.clone();
        // Its end is not waited for: where the reader stalls for good, it has none.
        thread::Builder::new().name("log".into()).spawn(move || write_out(&theirs, out))?;
        Ok(Self(shared))
    }

    /// Puts a line in, or drops it.
    fn put(&self, line: &[u8]) {
        let mut state = self.0.state();
        if state.lines.len() + line.len() > self.0.room {
            DROPPED.fetch_add(1, Relaxed);
            FULL.store(true, Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let unwritten = |state: &mut State| state.writing || !state.lines.is_empty();
        let state = self.0.state();
        drop(self.0.changed.wait_timeout_while(state, patience, unwritten));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each line is written by one call, so that a call is a line.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_out(shared: &Shared, mut out: impl Write) {
    let mut lines = Vec::new();
    loop {
        {
            let mut state = shared.state();
            state.writing = false;
            shared.changed.notify_all();
            while state.lines.is_empty() {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut lines, &mut state.lines);
            state.writing = true;
            FULL.store(false, Relaxed);
        }
        // Where the log is not read any more, the lines are dropped.
        drop(out.write_all(&lines).and_then(|()| out.flush()));
        lines.clear();
        lines.shrink_to(USUAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A reader that reads when it is told to.
    struct Reader {
        reads: mpsc::Receiver<()>,
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.reads.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.read.lock().expect("no panic while locked").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_the_rest_is_written() {
        let (go, reads) = mpsc::channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let mut queue = Queue::with_room(40, Reader { reads, read: read.clone() }).expect("a thread");
        writeln!(queue, "first").expect("never fails");
        // The thread takes it out and stalls.
        while !queue.0.state().writing {
            thread::yield_now();
        }
        let before = lines_dropped();
        for number in 0..10 {
            queue.write_all(format!("line {number}\n").as_bytes()).expect("never fails");
        }
        assert_eq!((lines_dropped() - before, flows()), (5, false), "five of them have room");
        queue.flush(Duration::from_millis(1));
        go.send(()).expect("it reads");
        go.send(()).expect("it reads");
        queue.flush(Duration::from_secs(60));
        assert!(flows());
        queue.write_all(b"last\n").expect("never fails");
        go.send(()).expect("it reads");
        queue.flush(Duration::from_secs(60));
        let text = String::from_utf8(read.lock().expect("no panic while locked").clone()).expect("UTF-8");
        assert_eq!(text, "first\nline 0\nline 1\nline 2\nline 3\nline 4\nlast\n");
    }
}
