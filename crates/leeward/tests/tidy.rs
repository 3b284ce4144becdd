//! Rules about the code itself that a machine can check. The rules stand in STYLE.md.
#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, process::Command};

const FUNCTION_LINES_MAX: usize = 70;
const MODULE_LINES_MAX: usize = 800;
const LINE_COLUMNS_MAX: usize = 100;
const BANNED_MODULES: [&str; 5] = ["util", "common", "misc", "helpers", "manager"];
/// Words of other products for what the glossary names otherwise, as parts of public names.
const BANNED_WORDS: [&str; 6] =
    ["Snapshotter", "Checkpointer", "Replicator", "Mgr", "Tenant", "Runbook"];

/// Which crates of ours a crate may use.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("model", &[]),
    ("durable", &[]),
    ("nbd", &[]),
    ("wire", &["model"]),
    ("capture", &["model"]),
    ("replica", &["model", "wire", "nbd"]),
    ("fabric", &["model", "capture", "nbd"]),
    ("control", &["model", "wire", "fabric", "durable"]),
    ("leeward", &["model", "wire", "nbd", "capture", "replica", "fabric", "durable", "control"]),
    (
        "sim",
        &["model", "wire", "nbd", "capture", "replica", "fabric", "durable", "control", "leeward"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_stem().is_some_and(|stem| stem == "tests")
}

/// Functions longer than the limit, by their first line.
fn long_functions(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let head = line.trim_start().split('(').next().unwrap_or("");
        let starts = head.split(' ').any(|word| word == "fn");
        if open.is_none() && starts && !line.ends_with(';') && !line.ends_with('}') {
            open = Some((index + 1, format!("{indent}}}")));
        } else if let Some((first, close)) = &open
            && line == close
        {
            if index + 2 - first > FUNCTION_LINES_MAX {
                found.push(*first);
            }
            open = None;
        }
    }
    found
}

fn check_file(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let mut fault = |line: usize, what: &str| faults.push(format!("{shown}:{line}: {what}"));
    let stem = path.file_stem().unwrap().to_str().unwrap();
    if BANNED_MODULES.contains(&stem) {
        fault(1, "the module name says nothing");
    }
    if !text.starts_with("//!") {
        fault(1, "the file does not say what it is (//! first)");
    }
    let body = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    if !is_test_file(path) && body.lines().count() > MODULE_LINES_MAX {
        fault(1, "the module is too long");
    }
    for (index, line) in text.lines().enumerate() {
        if line.chars().count() > LINE_COLUMNS_MAX && !line.contains("https://") {
            fault(index + 1, "the line is too long");
        }
        if stem == "tidy" {
            continue;
        }
        if line.contains("TODO") && !line.contains("TODO(#") {
            fault(index + 1, "a TODO without an issue");
        }
        if line.trim_start().starts_with("pub ")
            && let Some(word) = BANNED_WORDS.iter().find(|word| line.contains(**word))
        {
            fault(index + 1, &format!("{word} is not a word of the glossary"));
        }
    }
    for line in long_functions(text) {
        fault(line, "the function is too long");
    }
    faults
}

#[test]
fn every_file_is_tidy() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    assert!(files.len() > 50, "the sources were not found");

    let faults: Vec<_> = files
        .iter()
        .flat_map(|file| check_file(file, &fs::read_to_string(file).unwrap()))
        .collect();

    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn short(name: &str) -> &str {
    name.strip_prefix("leeward-").unwrap_or(name)
}

#[test]
fn crates_depend_only_downwards() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    for package in metadata["packages"].as_array().unwrap() {
        let name = short(package["name"].as_str().unwrap());
        let may_use = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in MAY_USE"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let is_ours = !dependency["path"].is_null() && dependency["kind"].is_null();
            let target = short(dependency["name"].as_str().unwrap());
            assert!(!is_ours || may_use.contains(&target), "{name} must not use {target}");
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let reasons = fs::read_to_string(root().join("deny.toml")).unwrap();
    for package in metadata()["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let is_ours = !dependency["path"].is_null();
            let line = format!("#   {name}: ");
            assert!(
                is_ours || reasons.contains(&line),
                "deny.toml does not say why {name} is used"
            );
        }
    }
}

#[test]
fn only_the_items_module_writes_protection_states() {
    let mut files = Vec::new();
    sources(&root().join("crates/control/src"), &mut files);
    // A test may make a row that an earlier version wrote.
    files.retain(|file| !file.components().any(|part| part.as_os_str() == "tests"));
    let writers: Vec<_> = files
        .iter()
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap().to_lowercase();
            text.contains("update items") || text.contains("insert into items")
        })
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(writers, ["items.rs"], "only the items file may write protection states");
}

#[test]
fn nothing_in_the_project_names_the_machine_it_was_written_on() {
    let output = Command::new("git")
        .args([
            "grep",
            "-nIE",
            "/work/(main|shared)|\\.library/",
            "--",
            ".",
            ":!crates/leeward/tests/tidy.rs",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(found.is_empty(), "{found}");
}
