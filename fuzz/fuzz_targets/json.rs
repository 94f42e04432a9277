//! Bodies in JSON. What is written is read back the same.
#![no_main]

use apimachinery::schema::decode::from_json;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((root, body)) = fuzz::kind(data) else { return };
    let Ok(decoded) = from_json(body) else { return };
    let again = from_json(decoded.value.to_string().as_bytes()).expect("what was written can be read");
    assert_eq!(again.value, decoded.value);
    fuzz::object(root, decoded.value);
});
