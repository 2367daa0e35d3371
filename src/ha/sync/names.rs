//! The text of `synchronous_standby_names`. (PG-281, PG-286)

use hathi_dcs::MemberName;

/// What PostgreSQL was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Commits wait for nobody.
    #[default]
    Nobody,
    /// `*`: any one receiver, whoever it is.
    Star,
    /// Commits wait for so many of these.
    Some { any: bool, num: u32, names: Vec<MemberName> },
}

impl Names {
    /// What a priority cluster waits for: all of these.
    pub fn all(names: Vec<MemberName>) -> Self {
        let num = u32::try_from(names.len()).unwrap_or(u32::MAX);
        if num == 0 { Self::Nobody } else { Self::Some { any: false, num, names } }
    }

    /// What a quorum cluster waits for.
    pub fn any(num: u32, names: Vec<MemberName>) -> Self {
        if names.is_empty() || num == 0 {
            Self::Nobody
        } else {
            Self::Some { any: true, num, names }
        }
    }

    /// As PostgreSQL reads it; sorted, quoted where it must be.
    pub fn to_text(&self) -> String {
        match self {
            Self::Nobody => String::new(),
            Self::Star => "*".to_owned(),
            Self::Some { any, num, names } => {
                let mut sorted: Vec<_> = names.iter().map(|name| quoted(name.as_str())).collect();
                sorted.sort_unstable();
                match (any, sorted.as_slice()) {
                    (false, [one]) => one.clone(),
                    (false, _) => format!("{num} ({})", sorted.join(",")),
                    (true, _) => format!("ANY {num} ({})", sorted.join(",")),
                }
            }
        }
    }

    /// PostgreSQL's grammar; what it does not fit is nobody's name. (PG-286)
    pub fn parse(text: &str) -> Self {
        let Some(words) = words(text) else { return Self::Nobody };
        let mut at = words.as_slice();
        let mut any = false;
        if let [Word::Bare(method), rest @ ..] = at
            && matches!(rest.first(), Some(Word::Bare(number)) if number.parse::<u32>().is_ok())
            && matches!(rest.get(1), Some(Word::Open))
        {
            any = method.eq_ignore_ascii_case("any");
            if !any && !method.eq_ignore_ascii_case("first") {
                return Self::Nobody;
            }
            at = rest;
        }
        let (num, list) = match at {
            [Word::Bare(number), Word::Open, list @ .., Word::Close] => {
                let Ok(num) = number.parse::<u32>() else { return Self::Nobody };
                (num, list)
            }
            list => (1, list),
        };
        let mut names = Vec::new();
        for (position, word) in list.iter().enumerate() {
            match (position % 2, word) {
                (0, Word::Bare(name)) if name == "*" => return Self::Star,
                (0, Word::Bare(name) | Word::Quoted(name)) => {
                    names.push(MemberName::from(name.as_str()));
                }
                (1, Word::Comma) => {}
                _ => return Self::Nobody,
            }
        }
        if names.is_empty() || num == 0 { Self::Nobody } else { Self::Some { any, num, names } }
    }
}

fn quoted(name: &str) -> String {
    let mut letters = name.chars();
    let begins = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let goes_on = letters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$');
    let reserved = ["first", "any"].iter().any(|word| name.eq_ignore_ascii_case(word));
    if begins && goes_on && !reserved {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Bare(String),
    Quoted(String),
    Open,
    Close,
    Comma,
}

fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => words.push(Word::Open),
            ')' => words.push(Word::Close),
            ',' => words.push(Word::Comma),
            '*' => words.push(Word::Bare("*".to_owned())),
            '"' => {
                let mut name = String::new();
                loop {
                    match letters.next()? {
                        '"' if letters.peek() == Some(&'"') => {
                            letters.next();
                            name.push('"');
                        }
                        '"' => break,
                        other => name.push(other),
                    }
                }
                words.push(Word::Quoted(name));
            }
            first => {
                let mut name = first.to_string();
                while let Some(c) =
                    letters.next_if(|c| !c.is_whitespace() && !"(),\"*".contains(*c))
                {
                    name.push(c);
                }
                words.push(Word::Bare(name));
            }
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<MemberName> {
        names.iter().map(|name| MemberName::from(*name)).collect()
    }

    /// Proves PG-281.
    #[test]
    fn the_text_is_patronis() {
        assert_eq!(Names::all(list(&["b"])).to_text(), "b");
        assert_eq!(Names::all(list(&["c", "b"])).to_text(), "2 (b,c)");
        assert_eq!(Names::any(1, list(&["b"])).to_text(), "ANY 1 (b)");
        assert_eq!(
            Names::any(2, list(&["pg-2", "any", "b"])).to_text(),
            "ANY 2 (\"any\",\"pg-2\",b)"
        );
        assert_eq!(Names::all(Vec::new()).to_text(), "");
        assert_eq!(Names::Star.to_text(), "*");
    }

    /// Proves PG-286.
    #[test]
    fn every_form_that_postgresql_takes_is_read() {
        let some = |any, num, names: &[&str]| Names::Some { any, num, names: list(names) };
        for (text, names) in [
            ("", Names::Nobody),
            ("*", Names::Star),
            ("2 (*)", Names::Star),
            ("b", some(false, 1, &["b"])),
            ("b, c", some(false, 1, &["b", "c"])),
            ("2 (b,c)", some(false, 2, &["b", "c"])),
            ("FIRST 1 (b, \"c d\")", some(false, 1, &["b", "c d"])),
            ("any 2(b,\"x\"\"y\")", some(true, 2, &["b", "x\"y"])),
            ("\"*\"", some(false, 1, &["*"])),
            ("ANY 2 (b", Names::Nobody),
            ("some 2 (b)", Names::Nobody),
            ("\"b", Names::Nobody),
            ("b c", Names::Nobody),
        ] {
            assert_eq!(Names::parse(text), names, "{text}");
        }
    }

    proptest::proptest! {
        /// Proves PG-281 (whatever is written is read back).
        #[test]
        fn what_is_written_is_read_back(num in 1_u32..4, any: bool, mut names in proptest::collection::vec("[a-z\\-\" *(,]{1,6}", 1..4)) {
            names.sort();
            names.dedup();
            let names: Vec<_> = names.iter().map(|name| MemberName::from(name.as_str())).collect();
            let single = names.len() == 1 && !any;
            let written = Names::Some { any, num: if single { 1 } else { num }, names: names.clone() };
            let Names::Some { any: a, num: n, names: mut read } = Names::parse(&written.to_text()) else {
                panic!("{}", written.to_text());
            };
            read.sort();
            proptest::prop_assert_eq!((a, n, read), (any, if single { 1 } else { num }, names));
        }
    }
}
