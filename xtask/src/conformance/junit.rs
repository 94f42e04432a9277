//! Reads the JUnit files that the suite writes, and says in a line why a test failed.

/// One test case of a report.
#[derive(Debug, PartialEq)]
pub struct Case {
    pub name: String,
    pub seconds: f64,
    pub state: State,
}

#[derive(Debug, PartialEq)]
pub enum State {
    Passed,
    /// With the whole message.
    Failed(String),
    Skipped,
}

/// The test cases of a report in the form that ginkgo writes. What is cut off is left out.
pub fn cases(report: &str) -> Vec<Case> {
    report.split("<testcase ").skip(1).filter_map(case).collect()
}

fn case(text: &str) -> Option<Case> {
    let (head, body) = text.split_once('>')?;
    let state = if let Some((_, failure)) = body.split_once("<failure") {
        let (_, message) = failure.split_once('>')?;
        State::Failed(unescape(message.split_once("</failure>")?.0))
    } else if body.contains("<skipped") {
        State::Skipped
    } else {
        State::Passed
    };
    let seconds = attribute(head, "time")?.parse().ok()?;
    Some(Case { name: attribute(head, "name")?, seconds, state })
}

fn attribute(head: &str, name: &str) -> Option<String> {
    let (_, rest) = head.split_once(&format!("{name}=\""))?;
    Some(unescape(rest.split_once('"')?.0))
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let Some((name, tail)) = after.split_once(';') else {
            rest = after;
            continue;
        };
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        out.extend(match name {
            "lt" => Some('<'),
            "gt" => Some('>'),
            "amp" => Some('&'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => match name.strip_prefix("#x") {
                Some(hex) => number(hex, 16),
                None => name.strip_prefix('#').and_then(|digits| number(digits, 10)),
            },
        });
        rest = tail;
    }
    out + rest
}

/// Characters of a cause.
const CAUSE_LIMIT: usize = 300;

/// A failure's message as one line: what was wrong, then the test's own file and line. What differs from run to run (addresses,
/// times, random names) is taken out, so that a record changes only when the cause does.
pub fn cause(message: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    let mut places: Vec<&str> = Vec::new();
    // Indentation of an error that is shown as a structure; its text follows.
    let mut structure: Option<usize> = None;
    let mut in_trace = false;
    for line in message.lines() {
        let text = without_date(line.trim());
        let indent = line.len() - line.trim_start().len();
        in_trace |= ["Full Stack Trace", "Full stack:", "goroutine "].iter().any(|start| text.starts_with(start));
        if let Some(place) = place(text) {
            places.push(place);
        } else if let Some(depth) = structure {
            if indent <= depth && text.starts_with('}') {
                structure = None;
            }
        } else if text.contains("| 0x") && text.ends_with('{') {
            structure = Some(indent);
        } else if !in_trace && !["", "occurred", "Unexpected error:"].contains(&text) {
            words.push(text);
        }
    }
    let text = stable(&words.join(" "));
    let mut text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CAUSE_LIMIT).collect();
    let own = places.iter().find(|place| !place.contains("/e2e/framework/") && place.contains("/test/e2e/"));
    if let Some(place) = own.or(places.last()).and_then(|place| place.rsplit('/').next()) {
        text.push_str(&format!(" ({place})"));
    }
    text
}

/// `/…/pods.go:88` of a line that is that and nothing more but an offset.
fn place(line: &str) -> Option<&str> {
    let word = line.split(" +0x").next()?;
    let (path, number) = word.rsplit_once(':')?;
    let is_place = path.starts_with('/') && path.ends_with(".go") && number.parse::<u32>().is_ok();
    is_place.then_some(word)
}

/// Takes off `Nov 23 17:52:00.123: `.
fn without_date(line: &str) -> &str {
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    match line.get(..20) {
        Some(head) if months.contains(&&head[..3]) && head.ends_with(':') => line[20..].trim_start(),
        _ => line,
    }
}

/// UIDs become `UID`, numbers of four digits and more `N`.
fn stable(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if is_uid(&bytes[at..]) {
            out.extend_from_slice(b"UID");
            at += UID_LENGTH;
        } else if digits >= 4 {
            out.push(b'N');
            at += digits;
        } else {
            out.extend_from_slice(&bytes[at..at + digits.max(1)]);
            at += digits.max(1);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

const UID_LENGTH: usize = 36;

fn is_uid(bytes: &[u8]) -> bool {
    bytes.len() >= UID_LENGTH
        && bytes[..UID_LENGTH].iter().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
  <testsuite name="Kubernetes e2e suite" tests="2" failures="1" errors="0" time="3.2">
      <testcase name="[sig-a] it &#34;works&#34; &amp; stays" classname="s" time="1.25"></testcase>
      <testcase name="[sig-a] other" classname="s" time="0">
          <skipped></skipped>
      </testcase>
      <testcase name="[sig-b] fails" classname="s" time="2">
          <failure type="Failure">/x/y/framework.go:12&#xA;Nov 23 17:52:00.123: Unexpected error:&#xA;    &lt;*errors.errorString | 0xc0001&gt;: {&#xA;        s: &#34;timed out&#34;,&#xA;    }&#xA;    pod web-0 of 1b4e28ba-2fa1-11d2-883f-0016d3cca427 in pods-4711: status 404&#xA;occurred&#xA;/x/test/e2e/framework/pods.go:88 +0x1&#xA;/x/test/e2e/apps/web.go:9</failure>
          <system-out>log</system-out>
      </testcase>
  </testsuite>"#;

    #[test]
    fn a_report_is_read_with_its_states_and_escapes() {
        let found = cases(REPORT);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], Case { name: "[sig-a] it \"works\" & stays".into(), seconds: 1.25, state: State::Passed });
        assert_eq!(found[1].state, State::Skipped);
        assert!(matches!(&found[2].state, State::Failed(message) if message.starts_with("/x/y/framework.go:12\nNov")));
    }

    #[test]
    fn a_report_that_breaks_off_gives_what_is_whole() {
        let cut = REPORT.find("timed out").expect("is there");
        assert_eq!(cases(&REPORT[..cut]).len(), 2);
    }

    #[test]
    fn a_cause_is_one_line_without_what_changes() {
        let State::Failed(message) = &cases(REPORT)[2].state else { panic!("failed") };
        assert_eq!(cause(message), "pod web-0 of UID in pods-N: status 404 (web.go:9)");
    }
}
