//! Whether a text is a schedule: five fields or a descriptor, as upstream's cron library reads them.

/// Lowest and highest value of a field, and names for its values from the lowest on.
struct Bounds {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { name: "minute", low: 0, high: 59, names: &[] },
    Bounds { name: "hour", low: 0, high: 23, names: &[] },
    Bounds { name: "day of month", low: 1, high: 31, names: &[] },
    Bounds { name: "month", low: 1, high: 12, names: &MONTHS },
    Bounds { name: "day of week", low: 0, high: 6, names: &DAYS },
];

/// What is wrong with `schedule`, if anything.
pub fn check(schedule: &str) -> Result<(), String> {
    if let Some(descriptor) = schedule.strip_prefix('@') {
        return check_descriptor(schedule, descriptor);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    fields
        .iter()
        .zip(&FIELDS)
        .try_for_each(|(text, bounds)| text.split(',').try_for_each(|part| check_part(part, bounds)))
}

fn check_descriptor(schedule: &str, descriptor: &str) -> Result<(), String> {
    match descriptor.split_once(' ') {
        None if matches!(
            descriptor,
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly"
        ) =>
        {
            Ok(())
        }
        Some(("every", duration)) if is_duration(duration) => Ok(()),
        Some(("every", _)) => Err(format!("failed to parse duration {schedule}")),
        _ => Err(format!("unrecognized descriptor: {schedule}")),
    }
}

/// A Go duration: numbers with units, `1h30m`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if number.len() == rest.len() {
            return false;
        }
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h"].iter().find(|unit| number.starts_with(**unit)) else {
            return false;
        };
        rest = &number[unit.len()..];
    }
    !text.is_empty()
}

/// `*`, `?`, a value or a range, each with an optional step.
fn check_part(part: &str, bounds: &Bounds) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step {
        match step.parse::<u32>() {
            Ok(0) => return Err(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(_) => {
                return Err(format!("failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"));
            }
        }
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (value(first, bounds)?, value(last, bounds)?);
    if first < bounds.low {
        return Err(format!("beginning of range ({first}) below minimum ({}) of {}: {part}", bounds.low, bounds.name));
    }
    if last > bounds.high {
        return Err(format!("end of range ({last}) above maximum ({}): {part}", bounds.high));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
    }
    Ok(())
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    if let Some(place) = bounds.names.iter().position(|name| text.eq_ignore_ascii_case(name)) {
        return Ok(bounds.low + place as u32);
    }
    text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-3,7 1 jan-mar SUN", "@hourly", "@every 1h30m", "0 0 ? * 1/2"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "a * * * *", "@never", "@every x"]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
