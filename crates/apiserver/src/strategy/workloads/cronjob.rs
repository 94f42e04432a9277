//! Cron jobs.

use apimachinery::cron::Schedule;
use apimachinery::field::{Error, ErrorList};
use apimachinery::{Value, meta};
use jiff::tz::TimeZone;
use serde_json::json;

use super::super::common::path_of;
use super::super::{Context, Part, Strategy};
use super::default_template;
use super::job::{name_warnings, spec};

pub struct CronJobs;

/// Pods of a job have its name and a suffix, and a job of a cron job has a suffix of eleven: 63 less that.
const MAX_NAME: usize = 52;
const MAX_ZONE_PART: usize = 14;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        // Only the pods: what else a job defaults, it does when it is made.
        default_template(object.pointer_mut("/spec/jobTemplate/spec/template"));
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        if old.is_none() && meta::name(object).len() > MAX_NAME {
            let why = format!("must be no more than {MAX_NAME} characters");
            errors.push(Error::invalid(&path_of(&["metadata", "name"]), &json!(meta::name(object)), &why));
        }
        validate_schedule(object, old, &mut errors);
        if old.is_none_or(|old| old["spec"]["timeZone"] != object["spec"]["timeZone"]) {
            validate_zone(object, &mut errors);
        }
        let template = meta::at(object, &["spec", "jobTemplate", "spec"]).unwrap_or(&Value::Null);
        let path = path_of(&["spec", "jobTemplate", "spec"]);
        spec::validate(template, &path, &mut errors);
        if let Some(selector) = template.get("selector").filter(|selector| !selector.is_null()) {
            errors.push(Error::invalid(&path.child("selector"), selector, "`selector` will be auto-generated"));
        }
        if template["manualSelector"] == json!(true) {
            errors.push(Error::not_supported(&path.child("manualSelector"), &json!(true), &["nil", "false"]));
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = name_warnings(object, old);
        warnings.extend(spec::warnings(&object["spec"]["jobTemplate"]["spec"]));
        let schedule = meta::str_at(object, &["spec", "schedule"]);
        if schedule.contains("TZ") {
            warnings.push(format!(
                "CRON_TZ or TZ used in {schedule:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            ));
        }
        warnings
    }
}

/// A zone within the schedule is left to those that have had one.
fn validate_schedule(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let text = meta::str_at(object, &["spec", "schedule"]);
    let path = path_of(&["spec", "schedule"]);
    if text.is_empty() {
        return;
    }
    let unknown = |schedule: Schedule| {
        let name = schedule.zone().filter(|name| TimeZone::get(name).is_err())?;
        Some(format!("provided bad location {name}: unknown time zone {name}"))
    };
    if let Some(why) = Schedule::parse(text).map_or_else(Some, unknown) {
        errors.push(Error::invalid(&path, &json!(text), &why));
    }
    if !text.contains("TZ") {
        return;
    }
    let had = old.is_some_and(|old| meta::str_at(old, &["spec", "schedule"]).contains("TZ"));
    if !had {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(Error::invalid(&path, &json!(text), why));
    } else if !object["spec"]["timeZone"].is_null() {
        let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.push(Error::invalid(&path, &json!(text), why));
    }
}

fn validate_zone(object: &Value, errors: &mut ErrorList) {
    let Some(zone) = object["spec"].get("timeZone").and_then(Value::as_str) else { return };
    let path = path_of(&["spec", "timeZone"]);
    let mut refuse = |why: &str| errors.push(Error::invalid(&path, &json!(zone), why));
    if zone.is_empty() {
        return refuse("timeZone must be nil or non-empty string");
    }
    let is_name = |part: &str| {
        let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte));
        plain && (1..=MAX_ZONE_PART).contains(&part.len()) && !part.starts_with('-') && part != "." && part != ".."
    };
    let unknown = format!("unknown time zone {zone}");
    if !zone.split('/').all(is_name) {
        return refuse(&unknown);
    }
    if zone.eq_ignore_ascii_case("local") {
        refuse("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    } else if TimeZone::get(zone).is_err() {
        refuse(&unknown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(schedule: &str, zone: Value, old: Option<&str>) -> Vec<String> {
        let object = json!({"spec": {"schedule": schedule, "timeZone": zone}});
        let old = old.map(|schedule| json!({"spec": {"schedule": schedule}}));
        let mut errors = ErrorList::new();
        validate_schedule(&object, old.as_ref(), &mut errors);
        validate_zone(&object, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn zones_are_named_in_their_own_field() {
        let none: Vec<String> = vec![];
        assert_eq!(told("@hourly", json!("America/Argentina/La_Rioja"), None), none);
        assert_eq!(told("TZ=Asia/Tokyo @hourly", Value::Null, Some("TZ=UTC @hourly")), none);
        let use_field = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        assert_eq!(
            told("TZ=Asia/Tokyo @hourly", Value::Null, Some("@hourly")),
            [format!("spec.schedule: Invalid value: \"TZ=Asia/Tokyo @hourly\": {use_field}")]
        );
        assert_eq!(told("TZ=UTC @hourly", json!("UTC"), Some("TZ=UTC @daily")).len(), 1);
        for zone in ["", "Local", "Mars/Olympus", "../etc/passwd", "A//B", "Etc/Averyverylongname"] {
            assert_eq!(told("@hourly", json!(zone), None).len(), 1, "{zone}");
        }
        assert_eq!(
            told("60 * * * *", Value::Null, None),
            ["spec.schedule: Invalid value: \"60 * * * *\": end of range (60) above maximum (59): 60"]
        );
    }
}
