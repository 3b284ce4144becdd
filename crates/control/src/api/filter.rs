//! The `$filter` grammar: `Name eq 'v'` joined by `and`; a list is `( N eq 'a' or N eq 'b' )`.

use crate::ControlError;

/// How a property is compared. The API's clients use `eq`; the others help with times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Equal, without regard to case.
    Equal,
    /// Unequal, without regard to case.
    Unequal,
    /// At least.
    AtLeast,
    /// At most.
    AtMost,
}

/// Is one property with the values that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clause {
    /// Lower-case name of the property.
    pub name: String,
    /// The alternatives: one of them must hold.
    pub any: Vec<(Comparison, String)>,
}

/// Is a whole filter: all clauses must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    clauses: Vec<Clause>,
}

/// The most clauses and alternatives that a filter may have together.
const COMPARISONS_MAX: usize = 64;

impl Filter {
    /// Reads a filter; an empty text is one that everything passes.
    ///
    /// # Errors
    /// BadRequest when the text is not of the grammar, or names a property outside `known`
    /// (lower case).
    pub fn parse(text: &str, known: &[&str]) -> Result<Filter, ControlError> {
        let tokens = tokens(text)?;
        let mut clauses = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            if at > 0 {
                expect_word(&tokens, &mut at, "and")?;
            }
            clauses.push(clause(&tokens, &mut at)?);
        }
        let total: usize = clauses.iter().map(|clause: &Clause| clause.any.len()).sum();
        if total > COMPARISONS_MAX {
            return Err(wrong(&format!("it has more than {COMPARISONS_MAX} comparisons")));
        }
        if let Some(clause) = clauses.iter().find(|clause| !known.contains(&clause.name.as_str())) {
            let known = known.join(", ");
            return Err(wrong(&format!("{} is not one of: {known}", clause.name)));
        }
        Ok(Filter { clauses })
    }

    /// The clauses of property `name` (lower case).
    pub fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Clause> + use<'a> {
        let name = name.to_owned();
        self.clauses.iter().filter(move |clause| clause.name == name)
    }

    /// Whether property `name` may have one of `values`; true when it is not filtered.
    pub fn admits(&self, name: &str, values: &[&str]) -> bool {
        self.of(name).all(|clause| {
            clause.any.iter().any(|(comparison, wanted)| {
                let equal = values.iter().any(|value| value.eq_ignore_ascii_case(wanted));
                match comparison {
                    Comparison::Equal => equal,
                    Comparison::Unequal => !equal,
                    Comparison::AtLeast => values.iter().any(|value| *value >= wanted.as_str()),
                    Comparison::AtMost => values.iter().any(|value| *value <= wanted.as_str()),
                }
            })
        })
    }

    /// Whether property `name` is filtered.
    pub fn has(&self, name: &str) -> bool {
        self.of(name).next().is_some()
    }

    /// The single value of `name`, when it is filtered by one.
    pub fn single(&self, name: &str) -> Option<&str> {
        let clause = self.of(name).next()?;
        Some(clause.any.first()?.1.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Word(String),
    Text(String),
}

fn wrong(why: &str) -> ControlError {
    ControlError::bad_request(format!("$filter cannot be understood: {why}"))
}

fn tokens(text: &str) -> Result<Vec<Token>, ControlError> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '(' | ')' => {
                out.push(if first == '(' { Token::Open } else { Token::Close });
                rest = &rest[1..];
            }
            '\'' => {
                let (value, after) = quoted(&rest[1..])?;
                out.push(Token::Text(value));
                rest = after;
            }
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()'".contains(c))
                    .unwrap_or(rest.len());
                out.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(out)
}

/// Reads up to the closing quote; two quotes stand for one.
fn quoted(text: &str) -> Result<(String, &str), ControlError> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('\'').ok_or_else(|| wrong("a quote is not closed"))?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Ok((value, rest)),
        }
    }
}

fn expect_word(tokens: &[Token], at: &mut usize, word: &str) -> Result<(), ControlError> {
    match tokens.get(*at) {
        Some(Token::Word(found)) if found.eq_ignore_ascii_case(word) => {
            *at += 1;
            Ok(())
        }
        _ => Err(wrong(&format!("`{word}` is missing between two comparisons"))),
    }
}

fn clause(tokens: &[Token], at: &mut usize) -> Result<Clause, ControlError> {
    if tokens.get(*at) != Some(&Token::Open) {
        let (name, comparison, value) = comparison(tokens, at)?;
        return Ok(Clause { name, any: vec![(comparison, value)] });
    }
    *at += 1;
    let (name, first, value) = comparison(tokens, at)?;
    let mut any = vec![(first, value)];
    while tokens.get(*at) != Some(&Token::Close) {
        expect_word(tokens, at, "or")?;
        let (other, next, value) = comparison(tokens, at)?;
        if other != name {
            return Err(wrong("a list in brackets names two properties"));
        }
        any.push((next, value));
    }
    *at += 1;
    Ok(Clause { name, any })
}

fn comparison(
    tokens: &[Token],
    at: &mut usize,
) -> Result<(String, Comparison, String), ControlError> {
    let part = tokens.get(*at..).and_then(|rest| rest.get(..3));
    let Some([Token::Word(name), Token::Word(how), Token::Text(value) | Token::Word(value)]) = part
    else {
        return Err(wrong("a comparison has the form Name eq 'value'"));
    };
    let comparison = match how.to_ascii_lowercase().as_str() {
        "eq" => Comparison::Equal,
        "ne" => Comparison::Unequal,
        "ge" | "gt" => Comparison::AtLeast,
        "le" | "lt" => Comparison::AtMost,
        other => return Err(wrong(&format!("{other} is not one of eq, ne, ge, gt, le, lt"))),
    };
    *at += 3;
    Ok((name.to_ascii_lowercase(), comparison, value.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clauses_and_lists_are_read_without_regard_to_case() {
        let text = "JobStatus EQ 'Failed' and ( FabricId eq 'a' or fabricid eq 'it''s' )";

        let filter = Filter::parse(text, &["jobstatus", "fabricid"]).unwrap();

        assert!(filter.admits("jobstatus", &["failed"]));
        assert!(!filter.admits("jobstatus", &["Succeeded"]));
        assert!(filter.admits("fabricid", &["IT'S"]));
        assert!(!filter.admits("fabricid", &["b"]));
        assert!(filter.admits("not filtered", &["x"]));
        assert_eq!(filter.single("jobstatus"), Some("Failed"));
    }

    #[test]
    fn an_unknown_property_or_a_broken_text_is_a_bad_request() {
        for text in [
            "Colour eq 'red'",
            "a",
            "a eq",
            "a eq 'x' b eq 'y'",
            "a eq 'x' and",
            "( a eq 'x'",
            "( a eq 'x' or b eq 'y' )",
            "a like 'x'",
            "a eq 'x",
        ] {
            let error = Filter::parse(text, &["a", "b"]).unwrap_err();
            assert_eq!(error.kind, crate::ErrorKind::BadRequest, "{text}");
        }
        assert_eq!(Filter::parse("  ", &[]).unwrap(), Filter::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail_otherwise(text in "[ ()'a-zé]{0,40}|.{0,40}") {
            let _ = Filter::parse(&text, &["a"]);
        }
    }
}
