//! Results in JUnit's XML, as other tools read them.

use std::fmt::Write as _;

use crate::runner::Outcome;

/// The report of one run.
pub fn report(outcomes: &[Outcome]) -> String {
    let failures = outcomes.iter().filter(|outcome| outcome.cause.is_some()).count();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"conformance\" tests=\"{}\" failures=\"{failures}\">\n",
        outcomes.len()
    );
    for outcome in outcomes {
        let (name, time) = (escaped(outcome.name), outcome.took.as_secs_f64());
        let failure = outcome.cause.as_ref().map(|cause| format!("<failure>{}</failure>", escaped(cause)));
        let failure = failure.unwrap_or_default();
        let _ = writeln!(xml, "  <testcase name=\"{name}\" classname=\"ours\" time=\"{time:.3}\">{failure}</testcase>");
    }
    xml.push_str("</testsuite>\n");
    xml
}

/// XML knows no control characters at all, so these become blanks.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn failures_are_counted_and_text_is_escaped() {
        let outcomes = [
            Outcome { name: "a 'b' <c>", took: Duration::from_millis(1500), cause: None },
            Outcome { name: "d", took: Duration::ZERO, cause: Some("1 < 2 & \u{1b}[0m".to_owned()) },
        ];
        let xml = report(&outcomes);
        assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
        assert!(xml.contains("name=\"a 'b' &lt;c&gt;\" classname=\"ours\" time=\"1.500\""), "{xml}");
        assert!(xml.contains("<failure>1 &lt; 2 &amp;  [0m</failure>"), "{xml}");
    }
}
