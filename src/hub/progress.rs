//! Progress of a fetch: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how far a file has come.
pub struct Progress {
    name: String,
    total: u64,
    view: View,
}

enum View {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    started: Instant,
    last: Instant,
    first_bytes: u64,
}

impl Progress {
    /// `total` in bytes; 0 = unknown.
    #[must_use]
    pub fn new(name: &str, total: u64) -> Self {
        let view = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            let style = "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(name.to_owned());
            View::Bar(bar)
        } else {
            let now = Instant::now();
            View::Lines(Mutex::new(Lines { started: now, last: now, first_bytes: 0 }))
        };
        Self { name: name.to_owned(), total, view }
    }

    /// The fetch resumes with `bytes` already there: they do not count for the rate.
    pub fn resume_at(&self, bytes: u64) {
        match &self.view {
            View::Bar(bar) => {
                bar.set_position(bytes);
                bar.reset_eta();
            }
            View::Lines(lines) => {
                if let Ok(mut l) = lines.lock() {
                    l.first_bytes = bytes;
                }
            }
        }
    }

    /// `bytes` of the file are here now.
    pub fn set(&self, bytes: u64) {
        match &self.view {
            View::Bar(bar) => bar.set_position(bytes),
            View::Lines(lines) => {
                let Ok(mut l) = lines.lock() else { return };
                if l.last.elapsed() >= LINE_INTERVAL {
                    l.last = Instant::now();
                    eprintln!(
                        "{}",
                        line(&self.name, bytes, self.total, bytes.saturating_sub(l.first_bytes), l.started.elapsed())
                    );
                }
            }
        }
    }

    /// The file is complete.
    pub fn finish(&self, bytes: u64) {
        match &self.view {
            View::Bar(bar) => {
                bar.set_position(bytes);
                bar.finish();
            }
            View::Lines(lines) => {
                if let Ok(l) = lines.lock() {
                    eprintln!(
                        "{}",
                        line(&self.name, bytes, self.total, bytes.saturating_sub(l.first_bytes), l.started.elapsed())
                    );
                }
            }
        }
    }

    /// Takes the bar off the screen (before an error is printed).
    pub fn abandon(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

fn line(name: &str, bytes: u64, total: u64, fetched: u64, elapsed: Duration) -> String {
    let mib = |b: u64| b as f64 / (1024.0 * 1024.0);
    let rate = fetched as f64 / elapsed.as_secs_f64().max(1e-3);
    let mut text = format!("{name}: {:.1}", mib(bytes));
    if total > 0 {
        text += &format!(" of {:.1} MiB ({:.0}%)", mib(total), 100.0 * bytes as f64 / total as f64);
    } else {
        text += " MiB";
    }
    text += &format!(", {:.1} MiB/s", rate / (1024.0 * 1024.0));
    if total > bytes && rate > 1.0 {
        text += &format!(", {:.0} s left", (total - bytes) as f64 / rate);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_show_rate_and_time_left() {
        let m = 1024 * 1024;
        assert_eq!(
            line("f", 50 * m, 100 * m, 50 * m, Duration::from_secs(5)),
            "f: 50.0 of 100.0 MiB (50%), 10.0 MiB/s, 5 s left"
        );
        assert_eq!(line("f", m, 0, m, Duration::from_secs(1)), "f: 1.0 MiB, 1.0 MiB/s");
        assert_eq!(line("f", m, m, m, Duration::from_secs(1)), "f: 1.0 of 1.0 MiB (100%), 1.0 MiB/s");
    }
}
