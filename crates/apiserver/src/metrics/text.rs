//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::Histogram;

/// Names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page of metrics. Samples of a family follow its [`Text::family`].
#[derive(Default)]
pub struct Text {
    out: String,
}

impl Text {
    /// Begins a family. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.name(name, "", labels, None);
        let _ = writeln!(self.out, " {value}");
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let snapshot = histogram.snapshot();
        for (bound, count) in histogram.bounds().iter().zip(&snapshot.cumulative) {
            self.name(name, "_bucket", labels, Some(&bound.to_string()));
            let _ = writeln!(self.out, " {count}");
        }
        self.name(name, "_bucket", labels, Some("+Inf"));
        let _ = writeln!(self.out, " {}", snapshot.count);
        for (suffix, value) in [("_sum", snapshot.sum), ("_count", snapshot.count as f64)] {
            self.name(name, suffix, labels, None);
            let _ = writeln!(self.out, " {value}");
        }
    }

    /// Text that is in the format already.
    pub fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }

    pub fn into_string(self) -> String {
        self.out
    }

    fn name(&mut self, name: &str, suffix: &str, labels: Labels<'_>, bound: Option<&str>) {
        let _ = write!(self.out, "{name}{suffix}");
        let mut open = '{';
        for (key, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.out, "{open}{key}=\"");
            open = ',';
            for c in value.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        if open == ',' {
            self.out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        histogram.observe(0.05);
        histogram.observe(0.5);
        histogram.observe(7.0);
        let mut text = Text::default();
        text.family("a_total", "counter", "All of it.");
        text.sample("a_total", &[("x", "1\"\\\n"), ("y", "")], 3);
        text.sample("a_total", &[], 0.5);
        text.histogram("h", &[("x", "1")], &histogram);
        let expected = "# HELP a_total All of it.\n# TYPE a_total counter\na_total{x=\"1\\\"\\\\\\n\",y=\"\"} 3\na_total 0.5\n\
            h_bucket{x=\"1\",le=\"0.1\"} 1\nh_bucket{x=\"1\",le=\"1\"} 2\nh_bucket{x=\"1\",le=\"+Inf\"} 3\n\
            h_sum{x=\"1\"} 7.55\nh_count{x=\"1\"} 3\n";
        assert_eq!(text.into_string(), expected);
    }
}
