//! Syntax of the scalar types that JSON has no type for: times and base64, with the errors of Go's parsers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

/// Layouts as Go names them in errors.
const SECONDS_LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICROS_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// `metav1.Time`: normalised to UTC and whole seconds.
pub fn time(text: &str) -> Result<String, String> {
    let at = parse_rfc3339(text, SECONDS_LAYOUT)?;
    Ok(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `metav1.MicroTime`: normalised to UTC with six digits of fraction, which are also required.
pub fn micro_time(text: &str) -> Result<String, String> {
    let at = parse_rfc3339(text, MICROS_LAYOUT)?;
    Ok(at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// Base64 in the standard alphabet with padding; line breaks are skipped, as Go's decoder does.
pub fn base64(text: &str) -> Result<(), String> {
    let cleaned: String;
    let text = if text.contains(['\r', '\n']) {
        cleaned = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        &cleaned
    } else {
        text
    };
    STANDARD.decode(text).map(drop).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// Walks `text` by the layout's elements, so that a failure names the element as Go does.
fn parse_rfc3339(text: &str, layout: &str) -> Result<Timestamp, String> {
    let bad = |rest: &str, element: &str| {
        format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")
    };
    let mut rest = text;
    let mut numbers = [0u32; 6];
    let elements = [("2006", 4, "-"), ("01", 2, "-"), ("02", 2, "T"), ("15", 2, ":"), ("04", 2, ":"), ("05", 2, "")];
    for (number, (element, width, separator)) in numbers.iter_mut().zip(elements) {
        let digits = rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let digits = digits.ok_or_else(|| bad(rest, element))?;
        *number = digits.parse().map_err(|_| bad(rest, element))?;
        rest = &rest[width..];
        rest = rest.strip_prefix(separator).ok_or_else(|| bad(rest, separator))?;
    }
    rest = skip_fraction(rest, layout).ok_or_else(|| bad(rest, ".000000"))?;
    let offset_ok = rest == "Z" || is_numeric_offset(rest);
    if !offset_ok {
        return Err(bad(rest, "Z07:00"));
    }
    let [_, month, day, hour, minute, second] = numbers;
    let out_of_range = |what| Err(format!("parsing time {text:?}: {what} out of range"));
    match () {
        () if !(1..=12).contains(&month) => return out_of_range("month"),
        () if !(1..=31).contains(&day) => return out_of_range("day"),
        () if hour > 23 => return out_of_range("hour"),
        () if minute > 59 => return out_of_range("minute"),
        () if second > 59 => return out_of_range("second"),
        () => {}
    }
    text.parse().or_else(|_| out_of_range("day"))
}

fn skip_fraction<'a>(rest: &'a str, layout: &str) -> Option<&'a str> {
    let digits = rest.strip_prefix('.').map(|r| r.bytes().take_while(u8::is_ascii_digit).count());
    if layout == MICROS_LAYOUT {
        return (digits == Some(6)).then(|| &rest[7..]);
    }
    Some(match digits {
        Some(n) if n > 0 => &rest[1 + n..],
        _ => rest,
    })
}

fn is_numeric_offset(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() == 6
        && matches!(b[0], b'+' | b'-')
        && b[3] == b':'
        && [1, 2, 4, 5].iter().all(|&i| b[i].is_ascii_digit())
        && text[1..3] <= *"23"
        && text[4..6] <= *"59"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_normalised_or_refused_as_go_does() {
        assert_eq!(time("2024-05-06T07:08:09.99+02:00").unwrap(), "2024-05-06T05:08:09Z");
        assert_eq!(micro_time("2024-05-06T07:08:09.123456Z").unwrap(), "2024-05-06T07:08:09.123456Z");
        let refused = |text: &str| time(text).unwrap_err();
        assert_eq!(
            refused("soon"),
            r#"parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006""#
        );
        assert_eq!(
            refused("2024-05-06"),
            r#"parsing time "2024-05-06" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#
        );
        assert_eq!(refused("2024-13-06T00:00:00Z"), r#"parsing time "2024-13-06T00:00:00Z": month out of range"#);
        assert_eq!(refused("2023-02-29T00:00:00Z"), r#"parsing time "2023-02-29T00:00:00Z": day out of range"#);
        assert!(micro_time("2024-05-06T07:08:09Z").unwrap_err().ends_with(r#"cannot parse "Z" as ".000000""#));
    }

    #[test]
    fn base64_errors_say_where() {
        assert_eq!(base64("aGk="), Ok(()));
        assert_eq!(base64("aG\nk="), Ok(()));
        assert_eq!(base64("a!==").unwrap_err(), "illegal base64 data at input byte 1");
    }
}
