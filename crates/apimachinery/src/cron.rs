//! Schedules of cron jobs as upstream's cron library (robfig/cron, standard format) reads them: five fields, or a descriptor
//! such as `@hourly` or `@every 90m`. Error texts are the library's, since API clients get to see them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// When something recurs.
#[derive(Clone, Debug)]
pub struct Schedule {
    times: Times,
    zone: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Fields(Fields),
    /// Seconds.
    Every(i64),
}

/// The permitted values of each field as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Day of month or day of week is any: then both have to match, else one is enough.
    any_day: bool,
}

/// Lowest and highest value of a field, and names for its values from the lowest on.
struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: &MONTHS },
    Bounds { low: 0, high: 6, names: &DAYS },
];
/// How far ahead a match is looked for: the 29th of February comes within eight years but for 2096, and upstream looks
/// five years ahead.
const YEARS_AHEAD: i16 = 5;

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it, as upstream's library words it.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let named = ["TZ=", "CRON_TZ="].iter().find_map(|prefix| text.strip_prefix(prefix));
        let (zone, rest) = match named {
            None => (None, text),
            Some(named) => {
                let (name, rest) = named.split_once(' ').unwrap_or((named, ""));
                (Some(name.to_owned()), rest.trim())
            }
        };
        let times = match rest.strip_prefix('@') {
            Some(_) => descriptor(rest)?,
            None => Times::Fields(fields(rest)?),
        };
        Ok(Schedule { times, zone })
    }

    /// The name of the zone in the text (`TZ=`), which takes the place of any other; new schedules must not have one.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The first time after `after` by the clocks of `zone`; none if there is none for years. A time that the change to summer time skips is left out, one that comes twice counts twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self.times {
            Times::Every(seconds) => Timestamp::from_second(after.as_second().checked_add(seconds)?).ok(),
            Times::Fields(fields) => fields.next(after, zone),
        }
    }
}

fn descriptor(text: &str) -> Result<Times, String> {
    let whole = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(duration) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let nanos = duration_nanos(duration).map_err(|why| format!("failed to parse duration {text}: {why}"))?;
            let seconds = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
            return Ok(Times::Every(seconds.max(1)));
        }
    };
    fields(whole).map(Times::Fields)
}

/// A Go duration (`1h30m`, `1.5s`, `0`) as flags have them; refuses what is negative.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    let nanos = duration_nanos(text)?;
    u64::try_from(nanos).map(std::time::Duration::from_nanos).map_err(|_| format!("{text:?} is negative"))
}

/// A Go duration (`1h30m`, `1.5s`) in nanoseconds.
fn duration_nanos(text: &str) -> Result<i128, String> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    let invalid = || format!("time: invalid duration {text:?}");
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..end];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, nanos)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        total += number * nanos;
        rest = &rest[end..];
    }
    if total > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(if negative { -(total as i128) } else { total as i128 })
}

fn fields(text: &str) -> Result<Fields, String> {
    let texts: Vec<&str> = text.split_whitespace().collect();
    let Ok(texts) = <[&str; 5]>::try_from(texts.clone()) else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", texts.len(), texts.join(" ")));
    };
    let mut bits = [(0, false); 5];
    for ((text, bounds), bits) in texts.iter().zip(&FIELDS).zip(&mut bits) {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (values, any) = range(part, bounds)?;
            *bits = (bits.0 | values, bits.1 | any);
        }
    }
    let [minutes, hours, days, months, weekdays] = bits;
    Ok(Fields {
        minutes: minutes.0,
        hours: hours.0,
        days: days.0,
        months: months.0,
        weekdays: weekdays.0,
        any_day: days.1 || weekdays.1,
    })
}

/// The values of `*`, `?`, `5`, `5-7`, each with or without `/step`, and whether they are all.
fn range(part: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let steps: Vec<&str> = part.split('/').collect();
    let limits: Vec<&str> = steps[0].split('-').collect();
    let (start, mut end, mut any) = match limits[..] {
        ["*" | "?", ..] => (bounds.low, bounds.high, true),
        [one] => (value(one, bounds)?, value(one, bounds)?, false),
        [start, end] => (value(start, bounds)?, value(end, bounds)?, false),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    let step = match steps[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            // A single value with a step means: from there on.
            if limits.len() == 1 {
                end = bounds.high;
            }
            any &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    if start < bounds.low {
        return Err(format!("beginning of range ({start}) below minimum ({}): {part}", bounds.low));
    }
    if end > bounds.high {
        return Err(format!("end of range ({end}) above maximum ({}): {part}", bounds.high));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    let values = (start..=end).step_by(step as usize).fold(0, |bits, value| bits | 1 << value);
    Ok((values, any))
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    match bounds.names.iter().position(|name| text.eq_ignore_ascii_case(name)) {
        Some(place) => Ok(bounds.low + place as u32),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        // Beyond every bound, whatever the field.
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

impl Fields {
    fn has_day(&self, at: &DateTime) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.any_day { day && weekday } else { day || weekday }
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at = Timestamp::from_second(after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?).ok()?;
        let first_year = zone.to_datetime(after).year();
        loop {
            let local = zone.to_datetime(at);
            if local.year() > first_year + YEARS_AHEAD {
                return None;
            }
            let date = local.date();
            let seconds_of_hour = i64::from(local.minute()) * 60 + i64::from(local.second());
            at = if self.months >> local.month() & 1 == 0 {
                later(at, start_of(zone, date.last_of_month().tomorrow().ok()?)?)
            } else if !self.has_day(&local) {
                later(at, start_of(zone, date.tomorrow().ok()?)?)
            } else if self.hours >> local.hour() & 1 == 0 {
                at.checked_add(SignedDuration::from_secs(3600 - seconds_of_hour)).ok()?
            } else if self.minutes >> local.minute() & 1 == 0 || local.second() != 0 {
                at.checked_add(SignedDuration::from_secs(60 - i64::from(local.second()))).ok()?
            } else {
                return Some(at);
            };
        }
    }
}

/// The first instant of a day.
fn start_of(zone: &TimeZone, date: jiff::civil::Date) -> Option<Timestamp> {
    zone.to_ambiguous_timestamp(date.at(0, 0, 0, 0)).compatible().ok()
}

/// Time never goes back, even where a zone skips a whole day.
fn later(at: Timestamp, next: Timestamp) -> Timestamp {
    if next > at { next } else { at + SignedDuration::from_hours(1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wrong_is_told_as_upstream_tells_it() {
        for (text, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5y", "failed to parse duration @every 5y: time: unknown unit \"y\" in duration \"5y\""),
        ] {
            assert_eq!(Schedule::parse(text).map(|_| ()), Err(why.to_owned()), "{text}");
        }
    }

    fn next_in(zone: &str, schedule: &str, after: &str) -> String {
        let zone = TimeZone::get(zone).expect("known");
        let after: Timestamp = after.parse().expect("a time");
        let next = Schedule::parse(schedule).expect("valid").next(after, &zone);
        next.map_or("never".to_owned(), |next| next.to_string())
    }

    #[test]
    fn the_next_time() {
        // 2026-01-01 is a Thursday.
        let after = "2026-01-01T10:20:30.5Z";
        for (schedule, next) in [
            ("* * * * *", "2026-01-01T10:21:00Z"),
            ("*/15 * * * *", "2026-01-01T10:30:00Z"),
            ("20 10 * * *", "2026-01-02T10:20:00Z"),
            ("5/20 10-11 * * *", "2026-01-01T10:25:00Z"),
            ("0 0 13 * fri", "2026-01-02T00:00:00Z"),
            ("0 0 13 * *", "2026-01-13T00:00:00Z"),
            ("0 0 */13 * fri", "2026-01-02T00:00:00Z"),
            ("0 0 ? feb-mar SUN", "2026-02-01T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "never"),
            ("@yearly", "2027-01-01T00:00:00Z"),
            ("@monthly", "2026-02-01T00:00:00Z"),
            ("@weekly", "2026-01-04T00:00:00Z"),
            ("@daily", "2026-01-02T00:00:00Z"),
            ("@hourly", "2026-01-01T11:00:00Z"),
            ("@every 1h30m10.5s", "2026-01-01T11:50:40Z"),
            ("@every 1ms", "2026-01-01T10:20:31Z"),
        ] {
            assert_eq!(next_in("UTC", schedule, after), next, "{schedule}");
        }
        let zoned = Schedule::parse("CRON_TZ=Asia/Tokyo 0 0 * * *").expect("valid");
        assert_eq!(zoned.zone(), Some("Asia/Tokyo"));
    }

    #[test]
    fn summer_time_skips_and_repeats() {
        // New York goes from 2:00 to 3:00 on 2026-03-08, and from 2:00 back to 1:00 on 2026-11-01.
        let next = |schedule, after| next_in("America/New_York", schedule, after);
        assert_eq!(next("30 2 * * *", "2026-03-08T05:00:00Z"), "2026-03-09T06:30:00Z");
        assert_eq!(next("0 * * * *", "2026-03-08T06:30:00Z"), "2026-03-08T07:00:00Z");
        assert_eq!(next("30 1 * * *", "2026-11-01T05:00:00Z"), "2026-11-01T05:30:00Z");
        assert_eq!(next("30 1 * * *", "2026-11-01T05:30:00Z"), "2026-11-01T06:30:00Z");
        assert_eq!(next("30 1 * * *", "2026-11-01T06:30:00Z"), "2026-11-02T06:30:00Z");
        // Beirut begins summer time at midnight.
        assert_eq!(next_in("Asia/Beirut", "0 0 * * *", "2026-03-28T12:00:00Z"), "2026-03-29T21:00:00Z");
    }

    fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            2 => Just("*".to_owned()),
            2 => (low..=high).prop_map(|value| value.to_string()),
            1 => (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            1 => (2u32..7).prop_map(|step| format!("*/{step}")),
            1 => (low..=high, low..=high).prop_map(|(a, b)| format!("{a},{b}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The next time is the first minute that matches, as found by looking at every minute.
        #[test]
        fn the_first_minute_that_matches(
            minute in field(0, 59), hour in field(0, 23), weekday in field(0, 6),
            zone in prop_oneof![Just("UTC"), Just("America/New_York"), Just("Australia/Lord_Howe"), Just("Asia/Kathmandu")],
            second in 1_767_225_600i64..1_798_761_600,
        ) {
            let text = format!("{minute} {hour} * * {weekday}");
            let schedule = Schedule::parse(&text).expect("valid");
            let Times::Fields(fields) = schedule.times else { panic!("fields") };
            let zone = TimeZone::get(zone).expect("known");
            let matching = |at: &Timestamp| {
                let local = zone.to_datetime(*at);
                fields.minutes >> local.minute() & 1 == 1 && fields.hours >> local.hour() & 1 == 1 && fields.has_day(&local)
            };
            let after = Timestamp::from_second(second).expect("in range");
            let minutes = (1..=9 * 24 * 60).map(|minute| Timestamp::from_second((second.div_euclid(60) + minute) * 60).expect("in range"));
            let first = minutes.into_iter().find(matching);
            prop_assert_eq!(schedule.next(after, &zone), first, "{}", text);
        }
    }
}
