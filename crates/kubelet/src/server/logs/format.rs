//! Lines of container logs in CRI format, and which of them a reader gets. Pure.
//!
//! `2016-10-06T00:17:09.669794202Z stdout P the beginning of a line`, with `F` for its end.

use jiff::Timestamp;

/// What a reader asked for (`v1.PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    /// Older lines are left out.
    pub since: Option<Timestamp>,
    /// Lines of the file, counted from its end.
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub stream: Wanted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    /// The container has written no line break here: the next line of this stream goes on.
    partial: bool,
    content: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
        let (time, stream, tags) = (text()?, text()?, text()?);
        // Tags are separated by colons; the first says whether the line is whole.
        let partial = tags.split(':').next() == Some("P");
        let content = fields.next().unwrap_or_default();
        matches!(stream, "stdout" | "stderr").then_some(Line { time, stream, partial, content })
    }
}

/// The time with nine digits of fraction, as upstream prints it (`RFC3339NanoFixed`), so that columns line up.
fn fixed_time(time: &str) -> String {
    let zone = time.rfind(['Z', '+', '-']).filter(|at| *at > 10).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    /// The reader has all that it asked for.
    Done,
}

/// Turns lines of a log file into what a reader gets.
pub struct Filter {
    options: LogOptions,
    bytes_left: Option<u64>,
    lines_left: Option<u64>,
    /// The next line begins a line of output.
    at_line_start: bool,
}

impl Filter {
    pub fn new(options: LogOptions) -> Self {
        // A reader that follows gets what comes after the tail as well.
        let lines_left = if options.follow { None } else { options.tail_lines };
        Filter { bytes_left: options.limit_bytes, lines_left, at_line_start: true, options }
    }

    /// Takes a line of the file, its line break excluded, and appends what the reader gets to `out`.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Progress {
        if self.is_done() {
            return Progress::Done;
        }
        if let Some(lines) = &mut self.lines_left {
            *lines -= 1;
        }
        // Upstream's kubelet passes over lines that it cannot read, too.
        if let Some(line) = Line::parse(line).filter(|line| self.wants(line)) {
            self.write(&line, out);
        }
        if self.is_done() { Progress::Done } else { Progress::More }
    }

    pub fn is_done(&self) -> bool {
        self.bytes_left == Some(0) || self.lines_left == Some(0)
    }

    fn wants(&self, line: &Line<'_>) -> bool {
        let stream = match self.options.stream {
            Wanted::All => true,
            Wanted::Stdout => line.stream == "stdout",
            Wanted::Stderr => line.stream == "stderr",
        };
        stream && self.options.since.is_none_or(|since| line.time.parse::<Timestamp>().is_ok_and(|time| time >= since))
    }

    fn write(&mut self, line: &Line<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(fixed_time(line.time).as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.content);
        if !line.partial {
            out.push(b'\n');
        }
        self.at_line_start = !line.partial;
        if let Some(left) = &mut self.bytes_left {
            out.truncate(start.saturating_add(usize::try_from(*left).unwrap_or(usize::MAX)));
            *left -= (out.len() - start) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-02T03:04:05.1Z stdout F one
2026-01-02T03:04:06.123456789Z stderr F two
2026-01-02T03:04:07+01:00 stdout P thr
nonsense
2026-01-02T03:04:08Z stdout F ee
2026-01-02T03:04:09Z stdout F
2026-01-02T03:04:10Z stdout F:x four  spaced
";

    fn check(options: LogOptions, expected: &str) {
        let (mut filter, mut out) = (Filter::new(options), Vec::new());
        for line in LOG.lines() {
            if filter.line(line.as_bytes(), &mut out) == Progress::Done {
                break;
            }
        }
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn lines_are_put_together() {
        check(LogOptions::default(), "one\ntwo\nthree\n\nfour  spaced\n");
    }

    #[test]
    fn timestamps_stand_at_the_beginning_of_lines_only() {
        check(
            LogOptions { timestamps: true, ..LogOptions::default() },
            "2026-01-02T03:04:05.100000000Z one\n\
             2026-01-02T03:04:06.123456789Z two\n\
             2026-01-02T03:04:07.000000000+01:00 three\n\
             2026-01-02T03:04:09.000000000Z \n\
             2026-01-02T03:04:10.000000000Z four  spaced\n",
        );
    }

    #[test]
    fn since_streams_and_limits() {
        let since = Some("2026-01-02T03:04:08.5Z".parse().unwrap());
        check(LogOptions { since, ..LogOptions::default() }, "\nfour  spaced\n");
        check(LogOptions { stream: Wanted::Stderr, ..LogOptions::default() }, "two\n");
        check(LogOptions { limit_bytes: Some(6), ..LogOptions::default() }, "one\ntw");
        check(LogOptions { tail_lines: Some(2), ..LogOptions::default() }, "one\ntwo\n");
        check(LogOptions { tail_lines: Some(0), ..LogOptions::default() }, "");
        check(LogOptions { tail_lines: Some(0), follow: true, limit_bytes: Some(1), ..LogOptions::default() }, "o");
    }
}
