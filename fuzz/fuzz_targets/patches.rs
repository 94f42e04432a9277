//! Two documents in a row, the second a patch of the first: JSON patch, merge patch, strategic merge patch and server-side apply.
#![no_main]

use apimachinery::Value;
use apimachinery::apply::{self, Filter, Manager, OneVersion};
use apimachinery::patch::{json, merge, strategic};
use apimachinery::schema::builtin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((root, rest)) = fuzz::kind(data) else { return };
    let mut documents = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
    let (Some(Ok(document)), Some(Ok(patch))) = (documents.next(), documents.next()) else { return };
    _ = json::apply(document.clone(), &patch);
    let mut merged = document.clone();
    if merge::apply(&mut merged, patch.clone()).is_ok() {
        let once = merged.clone();
        merge::apply(&mut merged, patch.clone()).expect("a merge patch can be applied again");
        assert_eq!(merged, once, "a merge patch applied twice is one applied once");
    }
    _ = strategic::apply(builtin(), root, document.clone(), patch.clone());
    let all = Filter::all();
    let now = "2026-01-01T00:00:00Z";
    let manager = Manager { name: "a", api_version: "v1", subresource: "", now, reset: &all };
    let applied = apply::apply(builtin(), root, &OneVersion, Some(&document), &patch, &manager, true);
    if let Ok(applied) = applied {
        let again = apply::apply(builtin(), root, &OneVersion, Some(&applied), &patch, &manager, true);
        assert_eq!(again.expect("what was applied can be applied again"), applied);
    }
});
