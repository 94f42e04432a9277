//! Which of its times a cron job has missed, and when the next one comes. Pure.

use std::time::Duration;

use apimachinery::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::CronJob;

/// After a start is due the controller waits this long, so that it is surely past.
const SLACK: Duration = Duration::from_millis(100);
/// More missed starts than this are told in an event.
const MANY: i64 = 100;

/// A cron job's schedule by the clocks of its zone.
pub struct Clock<'a> {
    pub schedule: &'a Schedule,
    pub zone: &'a TimeZone,
}

/// The schedule never matches.
#[derive(Debug, PartialEq, Eq)]
pub struct Never;

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("time difference between two schedules is less than 1 second")
    }
}

/// The starts since the last one.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    /// From when on starts count.
    since: Timestamp,
    /// The latest that is due.
    latest: Option<Timestamp>,
    /// About how many are due.
    count: i64,
}

impl Clock<'_> {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, self.zone)
    }

    /// `deadline` leaves out starts that are too late by the cron job's own rule.
    fn missed(&self, cron: &CronJob, now: Timestamp, deadline: bool) -> Result<Missed, Never> {
        let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
        let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
        let mut since = last.map_or(created, |time| time.0);
        if let Some(seconds) = cron.spec.starting_deadline_seconds.filter(|_| deadline) {
            let earliest = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
            since = since.max(earliest);
        }
        let first = self.next(since).ok_or(Never)?;
        if now < first {
            return Ok(Missed { since, latest: None, count: 0 });
        }
        let second = self.next(first).ok_or(Never)?;
        if now < second {
            return Ok(Missed { since, latest: Some(first), count: 0 });
        }
        let interval = (second.duration_since(first).as_secs_f64().round() as i64).max(1);
        let count = now.duration_since(first).as_secs() / interval + 1;
        Ok(Missed { since, latest: self.latest(first, now, interval, count), count })
    }

    /// The last start until `now`, of which there is one: `first`. An estimate says where to begin asking the schedule; since
    /// intervals differ it may be too late, then it is put off further and further. (Upstream asks once, and may overlook
    /// the last start before a long pause.)
    fn latest(&self, first: Timestamp, now: Timestamp, interval: i64, count: i64) -> Option<Timestamp> {
        let mut back = 2;
        loop {
            let skip = SignedDuration::from_secs((count - back).max(0).saturating_mul(interval));
            let mut latest = (back >= count).then_some(first);
            let mut next = first.checked_add(skip).ok().and_then(|from| self.next(from));
            while let Some(time) = next.filter(|time| *time <= now) {
                latest = Some(time);
                next = self.next(time);
            }
            if latest.is_some() {
                return latest;
            }
            back *= 2;
        }
    }

    /// The start that is due, and whether too many have been missed.
    pub fn due(&self, cron: &CronJob, now: Timestamp) -> Result<Option<(Timestamp, bool)>, Never> {
        let missed = self.missed(cron, now, true)?;
        Ok(missed.latest.map(|latest| (latest, missed.count > MANY)))
    }

    /// The time until the next start is due; none if there is none.
    pub fn wait(&self, cron: &CronJob, now: Timestamp) -> Option<Duration> {
        let from = match self.missed(cron, now, false) {
            Ok(Missed { latest: Some(latest), .. }) => latest,
            Ok(Missed { since, count: 0, .. }) => since,
            Ok(_) | Err(Never) => now,
        };
        let wait = Duration::try_from(self.next(from)?.duration_since(now)).unwrap_or_default();
        Some(wait + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().expect("a time")
    }

    /// The due start and the seconds until the next.
    fn due(schedule: &str, fields: &str, now: &str) -> String {
        let cron: CronJob = yaml(&format!(
            "{{ metadata: {{ creationTimestamp: '2026-01-01T00:00:30Z' }}, spec: {{ schedule: '', jobTemplate: {{ spec: {{ template: {{}} }} }} }}, {fields} }}"
        ));
        with(schedule, &cron, now)
    }

    fn with(schedule: &str, cron: &CronJob, now: &str) -> String {
        let schedule = Schedule::parse(schedule).expect("valid");
        let clock = Clock { schedule: &schedule, zone: &TimeZone::UTC };
        let due = match clock.due(cron, at(now)) {
            Ok(None) => "-".to_owned(),
            Ok(Some((time, many))) => format!("{}{}", time.strftime("%T"), if many { "!" } else { "" }),
            Err(error) => error.to_string(),
        };
        let wait = clock.wait(cron, at(now)).map_or("never".to_owned(), |wait| wait.as_secs().to_string());
        format!("{due} {wait}")
    }

    #[test]
    fn the_latest_missed_start_is_due() {
        let last = "status: { lastScheduleTime: '2026-01-01T10:00:00Z' }";
        assert_eq!(due("*/10 * * * *", "", "00:05:00"), "- 300");
        assert_eq!(due("*/10 * * * *", "", "00:10:00"), "00:10:00 600");
        assert_eq!(due("*/10 * * * *", last, "10:05:00"), "- 300");
        assert_eq!(due("*/10 * * * *", last, "10:10:01"), "10:10:00 599");
        assert_eq!(due("*/10 * * * *", last, "10:47:00"), "10:40:00 180");
        assert_eq!(due("* * * * *", last, "11:39:30"), "11:39:00 30");
        assert_eq!(due("* * * * *", last, "11:41:30"), "11:41:00! 30", "more than a hundred");
        assert_eq!(due("30 6-16/4 * * *", last, "23:00:00"), "14:30:00 27000");
        assert_eq!(due("@every 45m", last, "12:20:00"), "12:15:00 2400");
        assert_eq!(due("@every 45m", "", "00:30:00"), "- 930");
        assert_eq!(due("59 23 31 2 *", last, "12:00:00"), format!("{Never} never"));
    }

    #[test]
    fn a_deadline_forgets_what_is_too_late() {
        let cron = |deadline: i64| -> CronJob {
            yaml(&format!(
                "{{ metadata: {{ creationTimestamp: '2026-01-01T00:00:30Z' }}, spec: {{ schedule: '', startingDeadlineSeconds: {deadline}, jobTemplate: {{ spec: {{ template: {{}} }} }} }} }}"
            ))
        };
        assert_eq!(with("0 * * * *", &cron(60), "05:01:30"), "- 3510");
        assert_eq!(with("0 * * * *", &cron(100), "05:01:30"), "05:00:00 3510");
        assert_eq!(with("* * * * *", &cron(100), "05:01:30"), "05:01:00 30", "only two count as missed");
    }
}
