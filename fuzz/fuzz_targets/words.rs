//! What has a syntax of its own within objects and queries: selectors, quantities, schedules, durations, sets of owned fields.
#![no_main]

use apimachinery::apply::FieldSet;
use apimachinery::quantity::Quantity;
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{Value, cron};
use jiff::Timestamp;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let written = selector.to_string();
        assert_eq!(LabelSelector::parse(&written).expect("what was written can be read").to_string(), written);
        selector.matches(|key| (key.len() % 2 == 0).then_some("v"));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        selector.matches(|field| field.to_owned());
    }
    if let Ok(quantity) = Quantity::parse(text) {
        let written = quantity.to_string();
        let again = Quantity::parse(&written).expect("what was written can be read");
        assert_eq!(again.to_string(), written, "{text}");
        _ = (quantity.value(), quantity.milli_value(), quantity.as_f64());
    }
    if let Ok(schedule) = cron::Schedule::parse(text) {
        let from = Timestamp::from_second(1_700_000_000).expect("in range");
        _ = schedule.next(from, &jiff::tz::TimeZone::UTC);
    }
    _ = cron::duration(text);
    if let Ok(fields) = serde_json::from_str::<Value>(text)
        && let Ok(set) = FieldSet::parse(&fields)
    {
        let written = set.clone().into_value();
        assert_eq!(FieldSet::parse(&written).expect("what was written can be read").into_value(), written);
    }
});
