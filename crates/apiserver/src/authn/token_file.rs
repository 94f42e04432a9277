//! Bearer tokens of a file (`--token-auth-file`): lines of `token,user,uid[,"group1,group2"]`.

use crate::request::UserInfo;

/// The tokens of a file's text and whose they are. The error names the line.
pub fn parse(text: &str) -> Result<Vec<(String, UserInfo)>, String> {
    let mut tokens: Vec<(String, UserInfo)> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = fields(line).ok_or_else(|| format!("line {number}: a quote is missing or misplaced"))?;
        let [token, name, uid, rest @ ..] = fields.as_slice() else {
            return Err(format!(
                "token file must have at least 3 columns (token, user name, user uid), found {}",
                fields.len()
            ));
        };
        if token.is_empty() {
            tracing::warn!(line = number, "empty token has been found in token file");
            continue;
        }
        let groups = rest.first().map_or("", String::as_str).split(',').filter(|group| !group.is_empty());
        let user = UserInfo {
            name: name.clone(),
            uid: uid.clone(),
            groups: groups.map(str::to_owned).collect(),
            ..UserInfo::default()
        };
        if let Some(known) = tokens.iter_mut().find(|(known, _)| known == token) {
            tracing::warn!(line = number, "duplicate token has been found in token file");
            known.1 = user;
        } else {
            tokens.push((token.clone(), user));
        }
    }
    Ok(tokens)
}

/// The fields of a line of comma-separated values: quoted ones may have commas, and quotes doubled.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, tail) = rest.split_once(',').map_or((rest, None), |(field, tail)| (field, Some(tail)));
            if field.contains('"') {
                return None;
            }
            fields.push(field.trim().to_owned());
            match tail {
                Some(tail) => rest = tail,
                None => return Some(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (part, tail) = quoted.split_once('"')?;
            field.push_str(part);
            match tail.strip_prefix('"') {
                Some(tail) => {
                    field.push('"');
                    quoted = tail;
                }
                None => {
                    quoted = tail;
                    break;
                }
            }
        }
        fields.push(field);
        match quoted.strip_prefix(',') {
            Some(tail) => rest = tail,
            None => return quoted.is_empty().then_some(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens() {
        let text = "t1,ann,u1\n\nt2,bob,u2,\"devs,\"\"ops\"\"\"\n,nobody,u3\nt1,eve,u4,one\n";
        let tokens = parse(text).unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!((tokens[0].1.name.as_str(), tokens[0].1.groups.as_slice()), ("eve", &["one".to_owned()][..]));
        assert_eq!(tokens[1].1.groups, ["devs", "\"ops\""]);
        assert!(parse("t,u").unwrap_err().contains("at least 3 columns"));
        assert!(parse("t,u,\"x").unwrap_err().contains("line 1"));
        assert!(parse("t,u,\"x\"y").is_err());
    }
}
