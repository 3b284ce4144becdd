//! Judges refusals: each has a code, a cause, the present state and what to do.

use super::Ended;
use leeward::client::{ClientError, Reply};
use leeward_model::{Code, Problem};
use serde_json::Value;

/// Checks that text for a person holds a whole problem of `code`.
pub fn assert_says(text: &str, code: Code) {
    let begin = text.find(&format!("{}:", code.code));
    let begin = begin.unwrap_or_else(|| panic!("{} is not said in:\n{text}", code.code));
    let mut lines = text[begin..].lines();
    let what = lines.next().unwrap_or_default();
    assert!(what.len() > code.code.len() + 4, "nothing is said after the code:\n{text}");
    for part in ["cause:", "now:", "do:"] {
        // A quoted file may take some lines.
        let line = lines.by_ref().take(10).find_map(|line| line.trim().strip_prefix(part));
        let rest = line.unwrap_or_else(|| panic!("no {part} in:\n{text}"));
        assert!(!rest.trim().is_empty(), "{part} is empty in:\n{text}");
    }
}

/// Checks that a process refused with `code` and ended.
pub fn assert_refused(ended: &Ended, code: Code) {
    assert!(!ended.ok, "it did not fail: {}", ended.said);
    assert_says(&ended.said, code);
}

/// Checks a problem's parts.
pub fn assert_whole(problem: &Problem, code: Code) {
    assert_eq!(problem.code, code.code, "{problem}");
    for part in [&problem.what, &problem.cause, &problem.now, &problem.todo] {
        assert!(!part.trim().is_empty(), "a part is empty: {problem}");
    }
}

/// The problem by which the API refused.
#[track_caller]
pub fn refused(result: Result<Reply, ClientError>, status: u16, code: Code) -> Problem {
    match result {
        Err(ClientError::Refused { status: given, problem, .. }) => {
            assert_eq!((given, problem.code.as_str()), (status, code.code), "{problem}");
            assert_whole(&problem, code);
            *problem
        }
        other => panic!("not refused as {status} {}: {other:?}", code.code),
    }
}

/// Checks an error body as it came over the line.
#[track_caller]
pub fn assert_envelope(body: &Value, code: Code) {
    let error = &body["error"];
    let detail = &error["details"][0];
    assert_eq!(detail["code"], code.code, "{body}");
    let parts = [&error["code"], &error["message"], &detail["message"]];
    let more = ["possibleCauses", "currentState", "recommendedAction"].map(|key| &detail[key]);
    for part in parts.into_iter().chain(more) {
        assert!(part.as_str().is_some_and(|text| !text.is_empty()), "a part is missing: {body}");
    }
}
