//! `$(VAR)` in commands, arguments and environment values, by upstream's rules: `$$` is one dollar, and a reference to a name
//! that is not known stays as it is written.

/// Replaces the references that `lookup` knows.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// A command as upstream prints it in messages: words separated by spaces.
pub fn quoted_list(words: &[String]) -> String {
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let lookup = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "DOLLAR" => Some("$(A)".to_owned()),
            "" => None,
            _ => None,
        };
        for (text, expected) in [
            ("plain", "plain"),
            ("$(A)-$(A)", "a-a"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$(NONE)", "$(NONE)"),
            ("$(DOLLAR)", "$(A)"),
            ("$A $(A", "$A $(A"),
            ("$", "$"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollars_is_untouched_and_nothing_panics(text in ".*") {
            let expanded = expand(&text, |_| None);
            proptest::prop_assert!(text.contains('$') || expanded == text);
        }
    }
}
