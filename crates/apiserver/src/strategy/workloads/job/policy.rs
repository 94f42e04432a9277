//! Rules of a job's pod failure policy and success policy, and of lists of indexes.

use apimachinery::Value;
use apimachinery::field::{Error, ErrorList, Path};
use serde_json::json;

use super::super::super::common::items;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONDITIONS_MAX: usize = 20;
const INDEXES_MAX_BYTES: usize = 64 * 1024;

pub fn validate_failure(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let rules = path.child("rules");
    let count = items(&spec["podFailurePolicy"], "rules").count();
    if count > RULES_MAX {
        errors.push(Error::too_many(&rules, count, RULES_MAX));
    }
    for (index, rule) in items(&spec["podFailurePolicy"], "rules").enumerate() {
        validate_rule(spec, rule, &rules.index(index), errors);
    }
}

fn validate_rule(spec: &Value, rule: &Value, path: &Path, errors: &mut ErrorList) {
    if rule["action"] == "FailIndex" && spec.get("backoffLimitPerIndex").is_none_or(Value::is_null) {
        let why = "requires the backoffLimitPerIndex to be set";
        errors.push(Error::invalid(&path.child("action"), &rule["action"], why));
    }
    let codes = rule.get("onExitCodes").filter(|codes| codes.is_object());
    let conditions = items(rule, "onPodConditions").count();
    if let Some(codes) = codes {
        validate_codes(spec, codes, &path.child("onExitCodes"), errors);
    }
    if conditions > CONDITIONS_MAX {
        errors.push(Error::too_many(&path.child("onPodConditions"), conditions, CONDITIONS_MAX));
    }
    match (codes.is_some(), conditions > 0) {
        (true, true) => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(Error::invalid(path, rule, why));
        }
        (false, false) => {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(Error::invalid(path, rule, why));
        }
        _ => {}
    }
}

fn validate_codes(spec: &Value, codes: &Value, path: &Path, errors: &mut ErrorList) {
    let pod = &spec["template"]["spec"];
    let mut names = ["containers", "initContainers"].into_iter().flat_map(|list| items(pod, list)).map(|c| &c["name"]);
    let named = codes.get("containerName").filter(|name| !name.is_null());
    if let Some(name) = named.filter(|name| !names.any(|known| known == *name)) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(Error::invalid(&path.child("containerName"), name, why));
    }
    let at = path.child("values");
    let values: Vec<i64> = items(codes, "values").filter_map(Value::as_i64).collect();
    if values.len() > EXIT_CODES_MAX {
        errors.push(Error::too_many(&at, values.len(), EXIT_CODES_MAX));
    }
    for (index, value) in values.iter().enumerate() {
        if codes["operator"] == "In" && *value == 0 {
            errors.push(Error::invalid(&at.index(index), &json!(0), "must not be 0 for the In operator"));
        }
        if values[..index].contains(value) {
            errors.push(Error::duplicate(&at.index(index), &json!(value)));
        }
    }
    if !values.is_sorted() {
        errors.push(Error::invalid(&at, &codes["values"], "must be ordered"));
    }
}

pub fn validate_success(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("rules");
    let count = items(&spec["successPolicy"], "rules").count();
    if count == 0 {
        errors.push(Error::required(&at, "at least one rules must be specified when the successPolicy is specified"));
    }
    if count > RULES_MAX {
        errors.push(Error::too_many(&at, count, RULES_MAX));
    }
    // Absence is told elsewhere.
    let Some(completions) = spec.get("completions").and_then(Value::as_i64) else { return };
    for (index, rule) in items(&spec["successPolicy"], "rules").enumerate() {
        validate_success_rule(rule, completions, &at.index(index), errors);
    }
}

fn validate_success_rule(rule: &Value, completions: i64, path: &Path, errors: &mut ErrorList) {
    let indexes = rule.get("succeededIndexes").and_then(Value::as_str);
    let count = rule.get("succeededCount").and_then(Value::as_i64);
    if indexes.is_none() && count.is_none() {
        errors.push(Error::required(path, "at least one of succeededCount or succeededIndexes must be specified"));
    }
    let mut total = 0;
    if let Some(text) = indexes {
        let at = path.child("succeededIndexes");
        if text.len() > INDEXES_MAX_BYTES {
            errors.push(Error::too_long(&at, INDEXES_MAX_BYTES));
        }
        match parse_indexes(text, completions) {
            Ok(intervals) => total = intervals.iter().map(|(first, last)| last - first + 1).sum(),
            Err(why) => {
                errors.push(Error::invalid(&at, &json!(text), &format!("error parsing succeededIndexes: {why}")));
            }
        }
    }
    let Some(count) = count else { return };
    let at = path.child("succeededCount");
    if count < 0 {
        errors.push(Error::invalid(&at, &json!(count), "must be greater than or equal to 0"));
    }
    if count > completions {
        let why = format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(Error::invalid(&at, &json!(count), &why));
    }
    if indexes.is_some() && count > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(Error::invalid(&at, &json!(count), &why));
    }
}

/// Reads `0,2,4-6`, which has to rise and to stay below `completions`.
pub fn parse_indexes(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut intervals: Vec<(i64, i64)> = Vec::new();
    if text.is_empty() {
        return Ok(intervals);
    }
    let number = |text: &str| -> Result<i64, String> {
        let number: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number < completions { Ok(number) } else { Err(format!("too large index: {text:?}")) }
    };
    let rising = |before: i64, next: i64| match before < next {
        true => Ok(()),
        false => Err(format!("non-increasing order, previous: {before}, current: {next}")),
    };
    for part in text.split(',') {
        let limits: Vec<&str> = part.split('-').collect();
        let interval = match limits[..] {
            [one] => (number(one)?, number(one)?),
            [first, last] => {
                let (first, last) = (number(first)?, number(last)?);
                rising(first, last)?;
                (first, last)
            }
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some((_, before)) = intervals.last() {
            rising(*before, interval.0)?;
        }
        intervals.push(interval);
    }
    Ok(intervals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl Fn(&mut ErrorList)) -> Vec<String> {
        let mut errors = ErrorList::new();
        check(&mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn failure_rules() {
        let check = |rule: Value| {
            let spec = json!({"template": {"spec": {"containers": [{"name": "main"}]}}, "podFailurePolicy": {"rules": [rule]}});
            told(|errors| validate_failure(&spec, &Path::new("p"), errors))
        };
        assert!(
            check(
                json!({"action": "Count", "onExitCodes": {"containerName": "main", "operator": "In", "values": [1, 3]}})
            )
            .is_empty()
        );
        let wrong = json!({"action": "FailIndex", "onExitCodes": {"containerName": "x", "operator": "In", "values": [3, 0, 3]}});
        assert_eq!(
            check(wrong),
            [
                "p.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                "p.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template",
                "p.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                "p.rules[0].onExitCodes.values[2]: Duplicate value: 3",
                "p.rules[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered",
            ]
        );
        assert_eq!(check(json!({"action": "Count"})).len(), 1);
    }

    #[test]
    fn success_rules() {
        let check = |rules: Value| {
            let spec = json!({"completions": 5, "successPolicy": {"rules": rules}});
            told(|errors| validate_success(&spec, &Path::new("p"), errors))
        };
        assert!(check(json!([{"succeededIndexes": "0-2", "succeededCount": 3}])).is_empty());
        assert_eq!(check(json!([])).len(), 1);
        assert_eq!(check(json!([{}])).len(), 1);
        assert_eq!(check(json!([{"succeededIndexes": "0-2", "succeededCount": 4}])).len(), 1);
        assert_eq!(check(json!([{"succeededCount": 6}])).len(), 1);
        assert_eq!(
            check(json!([{"succeededIndexes": "2,1"}])),
            [
                "p.rules[0].succeededIndexes: Invalid value: \"2,1\": error parsing succeededIndexes: non-increasing order, previous: 2, current: 1"
            ]
        );
    }

    #[test]
    fn lists_of_indexes() {
        assert_eq!(parse_indexes("0,2-3", 4), Ok(vec![(0, 0), (2, 3)]));
        for bad in ["4", "1-1", "a", "1-2-3", "1,", "3,2"] {
            assert!(parse_indexes(bad, 4).is_err(), "{bad}");
        }
    }
}
