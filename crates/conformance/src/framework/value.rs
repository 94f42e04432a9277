//! Looking into dynamic objects, and errors that say what was there instead.

use anyhow::{Result, bail};
use serde_json::Value;

/// The value at a JSON pointer; null where there is none.
pub fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or(&Value::Null)
}

/// The text at a JSON pointer; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).as_str().unwrap_or_default()
}

/// The number at a JSON pointer; 0 where there is none, as Go's zero value.
pub fn number(object: &Value, pointer: &str) -> i64 {
    at(object, pointer).as_i64().unwrap_or_default()
}

/// The elements of the array at a JSON pointer; none where there is none.
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    at(object, pointer).as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

/// The resourceVersion as a number, which it must be: decimal, positive, without leading zeros.
pub fn revision(object: &Value) -> Result<u128> {
    let written = resource_version(object);
    match written.parse::<u128>() {
        Ok(number) if number > 0 && number.to_string() == written => Ok(number),
        _ => bail!("{}: resourceVersion {written:?} is not a positive decimal number", brief(object)),
    }
}

/// The second of two states of an object must be the later one.
pub fn newer(before: &Value, after: &Value) -> Result<()> {
    let (first, second) = (revision(before)?, revision(after)?);
    if first < second {
        return Ok(());
    }
    bail!("{}: resourceVersion {second} after {first}", brief(after))
}

/// Enough of an object to say which it is.
pub fn brief(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), name(object))
}

/// The condition of a type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

/// Whether the condition of a type has status "True".
pub fn holds(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| text(c, "/status") == "True")
}

/// The value at a pointer must be the expected one.
pub fn expect(object: &Value, pointer: &str, expected: impl Into<Value>) -> Result<()> {
    let expected = expected.into();
    let actual = at(object, pointer);
    if *actual == expected {
        return Ok(());
    }
    bail!("{}: {pointer} is {actual}, expected {expected}", brief(object))
}

/// The same for waits, whose answer to "not yet" is a text.
pub fn is(object: &Value, pointer: &str, expected: impl Into<Value>) -> Result<(), String> {
    expect(object, pointer, expected).map_err(|error| error.to_string())
}

/// "Not yet" unless the condition holds.
pub fn when(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Sets the value at a JSON pointer, making the maps on the way. Only for maps and existing elements of arrays.
pub fn set(object: &mut Value, pointer: &str, value: impl Into<Value>) {
    let mut here = object;
    for key in pointer.split('/').skip(1) {
        let key = key.replace("~1", "/").replace("~0", "~");
        here = match here {
            Value::Array(list) => {
                let index: usize = key.parse().expect("a pointer into an array has a number");
                &mut list[index]
            }
            other => &mut other[key],
        };
    }
    *here = value.into();
}

/// Whether every field of `part` is in `whole` with the same value; lists must agree element by element.
pub fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|have| contains(have, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(have, want)| contains(have, want))
        }
        _ => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn set_makes_what_is_missing() {
        let mut object = json!({"a": [{"b": 1}]});
        set(&mut object, "/a/0/c/d", "x");
        set(&mut object, "/metadata/annotations/example.com~1k", "v");
        assert_eq!(
            object,
            json!({"a": [{"b": 1, "c": {"d": "x"}}], "metadata": {"annotations": {"example.com/k": "v"}}})
        );
    }

    #[test]
    fn a_part_may_leave_out_fields_but_not_change_them() {
        let whole = json!({"a": 1, "b": [{"c": 2, "d": 3}]});
        assert!(contains(&whole, &json!({"b": [{"c": 2}]})));
        assert!(!contains(&whole, &json!({"b": [{"c": 3}]})));
        assert!(!contains(&whole, &json!({"b": []})));
        assert!(!contains(&whole, &json!({"e": null})));
    }

    #[test]
    fn revisions_are_decimal_and_ordered_as_numbers() {
        let at = |revision: &str| json!({"metadata": {"resourceVersion": revision}});
        assert!(newer(&at("9"), &at("10")).is_ok());
        assert!(newer(&at("10"), &at("9")).is_err());
        assert!(newer(&at("9"), &at("9")).is_err());
        for wrong in ["", "0", "07", "+7", "7a", "-1"] {
            assert!(revision(&at(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn expectations_say_what_was_there() {
        let object = json!({"kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Failed"}});
        let error = expect(&object, "/status/phase", "Running").unwrap_err().to_string();
        assert_eq!(error, "Pod p: /status/phase is \"Failed\", expected \"Running\"");
    }
}
