//! A Rust file as the house rules see it: its text, and its code without comments and literals.

use std::path::Path;

/// One file.
pub struct Source {
    /// From the top of the tree, with slashes.
    pub path: String,
    pub text: String,
    pub lines: usize,
    /// The text with the inside of comments, strings and characters blanked; newlines are kept.
    code: String,
}

/// All Rust files under the given folders; a folder that does not exist has none.
pub fn all_sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in folders {
        collect(Path::new(folder), &mut found);
    }
    assert!(!found.is_empty(), "run from the top of the tree");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(Source::new(path.to_str().unwrap(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

impl Source {
    pub fn new(path: &str, text: String) -> Source {
        let code = blank(&text);
        Source { path: path.to_string(), lines: text.lines().count(), text, code }
    }

    /// The room that the file belongs to: the folder below `src`.
    pub fn room(&self) -> Option<String> {
        let mut parts = self.path.split('/').skip(1);
        let room = parts.next()?;
        parts.next().is_some_and(|_| room != "bin").then(|| room.to_string())
    }

    /// Test code that stands in files of its own beside what it tests.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }

    /// Line and first name of every path that begins with `root::`, groups (`root::{a, b::c}`) included.
    pub fn paths_from(&self, root: &str) -> Vec<(usize, String)> {
        let prefix = format!("{root}::");
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices(&prefix) {
            if self.code[..at].ends_with(|c: char| is_word(c) || c == ':') {
                continue;
            }
            let rest = &self.code[at + prefix.len()..];
            let line = self.line_of(at);
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_heads(group).into_iter().map(|name| (line, name))),
                None => found.push((line, first_word(rest))),
            }
        }
        found
    }

    /// Lines where a crate is named at the head of a path.
    pub fn uses_of(&self, krate: &str) -> Vec<usize> {
        let whole = |at: usize| {
            let before = self.code[..at].chars().next_back();
            let after = &self.code[at + krate.len()..];
            let imported = self.code[..at].trim_end().ends_with("use") && after.starts_with(';');
            !before.is_some_and(|c| is_word(c) || c == ':') && (after.starts_with("::") || imported)
        };
        self.code.match_indices(krate).filter(|(at, _)| whole(*at)).map(|(at, _)| self.line_of(at)).collect()
    }

    /// Line, name and length in lines of every function that has a body.
    pub fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("fn ") {
            if self.code[..at].ends_with(is_word) {
                continue;
            }
            let name = first_word(self.code[at + 3..].trim_start());
            let Some(end) = (!name.is_empty()).then(|| body_end(&self.code, at)).flatten() else { continue };
            found.push((self.line_of(at), name, self.line_of(end) - self.line_of(at) + 1));
        }
        found
    }

    fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

/// The first names of a group's members: `a, b::{c, d}}` gives a and b.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut member = String::new();
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut member)),
            c if depth == 0 => member.push(c),
            _ => {}
        }
    }
    heads.push(member);
    heads.iter().map(|m| first_word(m.trim())).filter(|m| !m.is_empty()).collect()
}

/// Where the body of the function at `at` ends; `None` for a declaration.
fn body_end(code: &str, at: usize) -> Option<usize> {
    let mut round = 0i32;
    let mut curly = 0i32;
    for (i, c) in code[at..].char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round -= 1,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly -= 1;
                if curly <= 0 && round == 0 {
                    return Some(at + i);
                }
            }
            _ => {}
        }
    }
    None
}

/// Blanks comments and the inside of strings and characters, byte for byte.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skip(&bytes[at..], at > 0 && is_word(bytes[at - 1] as char));
        if end == at {
            at += 1;
            continue;
        }
        out[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        at = end;
    }
    String::from_utf8(out).expect("only whole literals and comments are blanked")
}

/// Bytes of the comment or literal that `rest` begins with; 0 if it begins with code.
fn skip(rest: &[u8], in_word: bool) -> usize {
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => quoted(rest, b'"'),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string(&rest[1..]).map_or(0, |n| n + 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !in_word => raw_string(&rest[2..]).map_or(0, |n| n + 2),
        // A character, not a lifetime: an escape, or closed after one character.
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        [b'\'', tail @ ..] => {
            let width = std::str::from_utf8(&tail[..tail.len().min(4)])
                .map_or_else(|e| e.valid_up_to(), |_| tail.len().min(4));
            let first = std::str::from_utf8(&tail[..width]).ok().and_then(|s| s.chars().next());
            match first.map(char::len_utf8) {
                Some(n) if tail.get(n) == Some(&b'\'') => n + 2,
                _ => 0,
            }
        }
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// From the hashes or the quote on; `None` if it is no raw string (`r#type`).
fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|b| **b == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = &rest[hashes + 1..];
    let at = body.windows(end.len()).position(|w| w == end)?;
    Some(hashes + 1 + at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_do_not_count() {
        let text = "use crate::a::X; // use crate::b\nlet s = \"crate::c\"; let c = '\"'; let l: &'a u8; /* crate::d /* */ */\nlet r = r#\"crate::e \" \"#; use crate::{f, g::{h}, i as j};";
        let source = Source::new("src/x/y.rs", text.to_string());
        let names: Vec<String> = source.paths_from("crate").into_iter().map(|(_, n)| n).collect();
        assert_eq!(names, ["a", "f", "g", "i"]);
        assert_eq!(source.room().as_deref(), Some("x"));
    }

    #[test]
    fn functions_are_measured() {
        let text = "trait T { fn declared(&self);\n fn with_body() {\n let c = '{';\n }\n}\nfn f(x: [u8; 2]) -> u8\nwhere u8: Copy,\n{\n 1\n}\n";
        let source = Source::new("src/x/y.rs", text.to_string());
        let found = source.functions();
        assert_eq!(found, [(2, "with_body".to_string(), 3), (6, "f".to_string(), 5)]);
    }

    #[test]
    fn crates_are_seen_where_paths_begin() {
        let text = "use libc;\nlet a = libc::open; let b = my::libc::open; let c = notlibc::open;\n";
        assert_eq!(Source::new("x", text.to_string()).uses_of("libc"), [1, 2]);
    }
}
