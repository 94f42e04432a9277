//! Links that lead back through the proxy: the `Location` of redirects and the links of HTML pages, as upstream's
//! `proxy.Transport` rewrites them.

/// Longer tags are passed on as they are.
const TAG_BYTES_MAX: usize = 64 * 1024;

/// Attributes that hold one URL.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// What a proxied request was, as far as links depend on it.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of the request up to and including `/proxy`.
    pub prefix: String,
    /// `host:port` of the target.
    pub target_host: String,
    /// The `Host` of the client's request.
    pub request_host: String,
}

impl Links {
    /// A URL as the client must see it: absolute paths of the target get the prefix; other hosts and relative paths stay.
    pub fn rewrite(&self, url: &str) -> String {
        let (host, rest) = split_host(url);
        let other_host = host.is_some_and(|host| host != self.target_host && host != self.request_host);
        if other_host || !rest.starts_with('/') {
            return url.to_owned();
        }
        let (path, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        if path.starts_with(&self.prefix) { format!("{path}{query}") } else { format!("{}{path}{query}", self.prefix) }
    }
}

/// The host of an absolute or scheme-relative URL, and what follows it; for other URLs, all of it.
fn split_host(url: &str) -> (Option<&str>, &str) {
    let after_scheme = match url.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => Some(rest),
        _ => url.strip_prefix("//"),
    };
    match after_scheme {
        None => (None, url),
        Some(rest) => {
            let (host, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            (Some(host), rest)
        }
    }
}

/// Rewrites the links of a page as it passes. Everything but the values of link attributes stays byte for byte.
pub struct HtmlRewriter {
    links: Links,
    /// The beginning of a tag or comment whose end has not come yet.
    pending: Vec<u8>,
    /// Inside `script` or `style`, where nothing but the end tag counts.
    raw_text: Option<&'static str>,
}

impl HtmlRewriter {
    pub fn new(links: Links) -> Self {
        HtmlRewriter { links, pending: Vec::new(), raw_text: None }
    }

    /// Takes the next bytes of the page; returns what can go on.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let input = [std::mem::take(&mut self.pending).as_slice(), bytes].concat();
        let mut out = Vec::with_capacity(input.len() + 256);
        let mut rest = input.as_slice();
        loop {
            let start = match self.raw_text.take() {
                None => rest.iter().position(|byte| *byte == b'<'),
                Some(element) => {
                    let end_tag = find_end_tag(rest, element);
                    if end_tag.is_none() {
                        self.raw_text = Some(element);
                        let (passed, held) = rest.split_at(rest.len().saturating_sub("</".len() + element.len() - 1));
                        out.extend_from_slice(passed);
                        self.pending = held.to_vec();
                        return out;
                    }
                    end_tag
                }
            };
            let Some(start) = start else { break };
            out.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            let Some(length) = markup_length(rest) else {
                if rest.len() > TAG_BYTES_MAX {
                    out.extend_from_slice(rest);
                } else {
                    self.pending = rest.to_vec();
                }
                return out;
            };
            self.markup(&rest[..length], &mut out);
            rest = &rest[length..];
        }
        out.extend_from_slice(rest);
        out
    }

    /// What was held back when the page ended in the middle of a tag.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    fn markup(&mut self, markup: &[u8], out: &mut Vec<u8>) {
        let Some(text) = std::str::from_utf8(markup).ok().filter(|text| !text.starts_with("<!")) else {
            return out.extend_from_slice(markup);
        };
        let name: String =
            text[1..].chars().take_while(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        match LINKS.iter().find(|(element, _)| *element == name) {
            Some((_, attributes)) => out.extend(self.attributes(text, 1 + name.len(), attributes).into_bytes()),
            None => out.extend_from_slice(markup),
        }
        self.raw_text = ["script", "style"].into_iter().find(|element| *element == name);
    }

    fn attributes(&self, tag: &str, start: usize, wanted: &[&str]) -> String {
        let mut out = tag[..start].to_owned();
        let mut rest = &tag[start..];
        while let Some((name, value)) = next_attribute(rest) {
            let is_link = wanted.iter().any(|wanted| name.eq_ignore_ascii_case(wanted));
            out.push_str(&rest[..value.start]);
            let url = &rest[value.clone()];
            if is_link {
                out.push_str(&self.links.rewrite(url))
            } else {
                out.push_str(url)
            }
            rest = &rest[value.end..];
        }
        out.push_str(rest);
        out
    }
}

fn find_end_tag(text: &[u8], element: &str) -> Option<usize> {
    let length = "</".len() + element.len();
    text.windows(length)
        .position(|window| window.starts_with(b"</") && window[2..].eq_ignore_ascii_case(element.as_bytes()))
}

/// The length of the tag or comment that `text` starts with; `None` if its end has not come.
fn markup_length(text: &[u8]) -> Option<usize> {
    if text.starts_with(b"<!--") {
        return text.windows(3).skip(2).position(|window| window == b"-->").map(|at| at + 5);
    }
    match text.get(1) {
        None => return None,
        // A "<" that starts no tag.
        Some(byte) if !byte.is_ascii_alphabetic() && !b"/!?".contains(byte) => return Some(1),
        Some(b'!') if b"<!--".starts_with(text) => return None,
        Some(_) => {}
    }
    let mut quote = None;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if text[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
            (Some(open), byte) if *byte == open => quote = None,
            _ => {}
        }
    }
    None
}

/// The next attribute that has a value: its name, and where the value lies, quotes excluded.
fn next_attribute(text: &str) -> Option<(&str, std::ops::Range<usize>)> {
    let equals = text.find('=')?;
    let name = text[..equals].trim_end().rsplit([' ', '\t', '\n', '\r', '\x0c', '/']).next().unwrap_or_default();
    let after = &text[equals + 1..];
    let start = equals + 1 + (after.len() - after.trim_start().len());
    let value = &text[start..];
    let range = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let length = value[1..].find(quote)?;
            start + 1..start + 1 + length
        }
        _ => {
            let length = value.find([' ', '\t', '\n', '\r', '\x0c', '>']).unwrap_or(value.len());
            start..start + length
        }
    };
    Some((name, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/ns/pods/web:80/proxy";

    fn links() -> Links {
        Links {
            prefix: PREFIX.to_owned(),
            target_host: "10.0.0.1:80".to_owned(),
            request_host: "api.example:6443".to_owned(),
        }
    }

    #[test]
    fn urls() {
        let cases = [
            ("/", "/api/v1/namespaces/ns/pods/web:80/proxy/"),
            ("/a/b/?c=/d#e", "/api/v1/namespaces/ns/pods/web:80/proxy/a/b/?c=/d#e"),
            ("http://10.0.0.1:80/a", "/api/v1/namespaces/ns/pods/web:80/proxy/a"),
            ("https://api.example:6443/a", "/api/v1/namespaces/ns/pods/web:80/proxy/a"),
            ("//10.0.0.1:80/a", "/api/v1/namespaces/ns/pods/web:80/proxy/a"),
            ("http://elsewhere/a", "http://elsewhere/a"),
            ("a/b", "a/b"),
            ("?q", "?q"),
            ("#part", "#part"),
            ("mailto:a@b", "mailto:a@b"),
            ("/api/v1/namespaces/ns/pods/web:80/proxy/x", "/api/v1/namespaces/ns/pods/web:80/proxy/x"),
        ];
        for (url, expected) in cases {
            assert_eq!(links().rewrite(url), expected);
        }
    }

    const PAGE: &str = r#"<!DOCTYPE html><!-- <a href="/no"> --><html><body background=/bg.png>
<a class="x>y" href="/one">one</a> <A HREF='/two?a=1&amp;b=2'>two</A> <a href=three>3</a> 1 < 2 <b>=</b>
<img alt="a=/b" src = "/i.png"/><script src="/s.js">if (a<b) { x = "<a href='/no'>" }</SCRIPT>
<p title="/no">é</p><link href="/css"><a href="/last"#;

    fn expected() -> String {
        let with = |page: &str, link: &str| page.replace(link, &link.replacen('/', &format!("{PREFIX}/"), 1));
        ["=/bg.png", "\"/one\"", "'/two", "\"/i.png\"", "\"/s.js\"", "\"/css\""]
            .iter()
            .fold(PAGE.to_owned(), |page, link| with(&page, link))
    }

    #[test]
    fn pages_keep_everything_but_their_links() {
        for cut in 1..PAGE.len() {
            let mut rewriter = HtmlRewriter::new(links());
            let mut out: Vec<u8> = PAGE.as_bytes().chunks(cut).flat_map(|chunk| rewriter.push(chunk)).collect();
            out.extend(rewriter.finish());
            assert_eq!(String::from_utf8(out).unwrap(), expected(), "in pieces of {cut} bytes");
        }
    }
}
