//! `/metrics`, and what `monitoring/` makes of it. promtool is the judge; `scripts/setup.sh
//! --tests` fetches it.

use super::protected::World;
use super::*;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn promtool() -> Command {
    let fetched = root().join("target/prometheus/usr/bin/promtool");
    Command::new(if fetched.exists() { fetched } else { "promtool".into() })
}

async fn scrape(router: Router) -> String {
    let request = Request::builder()
        .uri("/metrics")
        .header("authorization", "Bearer Reader")
        .body(Body::empty())
        .unwrap();
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The figure of a line that begins with `name` and holds all of `labels`.
fn figure(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = text.lines().find(|line| {
        line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|l| line.contains(l))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Names of metrics in a text of any kind.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word).filter(|word| word.starts_with("leeward_")).map(str::to_owned).collect()
}

/// The figures are those that the API shows, follow the time, and need a token.
#[tokio::test]
async fn the_figures_are_those_of_the_views_and_age_while_a_host_is_away() {
    let mut world = World::protected().await;
    let refused = world.api.send("nobody", HttpMethod::GET, "/metrics", vec![]).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    world.api.fleet.turn().await;

    let text = scrape(world.api.router.clone()).await;
    let of = |name: &str, labels: &[&str]| figure(&text, name, labels);
    let web = ["item=\"web01\"", "site=\"hill\"", "vault=\"default\"", "group=\"leeward\""];
    let shown = world.show().await;
    let rpo = shown["providerSpecificDetails"]["leewardRpoSeconds"].as_f64();
    assert!(rpo.is_some(), "{shown}");
    assert_eq!(of("leeward_item_rpo_seconds", &web), rpo);
    assert_eq!(of("leeward_item_state", &["state=\"Protected\""]), Some(1.0));
    assert_eq!(of("leeward_item_health", &web), Some(0.0));
    assert_eq!(of("leeward_host_connected", &["host=\"kvm-a\""]), Some(1.0));
    assert_eq!(of("leeward_host_machines", &["host=\"kvm-a\""]), Some(1.0));
    let ended = ["scenario=\"EnableProtection\"", "outcome=\"Succeeded\""];
    assert_eq!(of("leeward_jobs_ended_total", &ended), Some(1.0));
    assert_eq!(of("leeward_api_refusals_total", &["code=\"LW-0106\""]), Some(1.0));
    assert_eq!(of("leeward_api_answers_total", &["status=\"401\""]), Some(1.0));
    assert!(of("leeward_audit_log_entries", &[]).unwrap() >= 5.0);
    assert_eq!(of("leeward_item_last_test_timestamp_seconds", &[]), None, "never tested");

    world.api.fleet.clock.advance(600_000);
    let later = scrape(world.api.router.clone()).await;
    let rpo = figure(&later, "leeward_item_rpo_seconds", &web).unwrap();
    assert!(rpo >= 600.0, "silence never makes it younger: {rpo}");
    assert_eq!(figure(&later, "leeward_host_connected", &["host=\"kvm-a\""]), Some(0.0));
    assert_eq!(figure(&later, "leeward_item_health", &web), Some(2.0));
    assert_eq!(figure(&later, "leeward_item_problem", &["code=\"LW-0107\""]), Some(1.0));
}

fn succeeds(mut command: Command, input: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is missing: scripts/setup.sh --tests");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}

/// promtool takes the figures, the rules, what the rules are to do in time, and the example.
#[tokio::test]
async fn promtool_finds_nothing_wrong_with_figures_rules_and_example() {
    let world = World::protected().await;
    let text = scrape(world.api.router.clone()).await;
    let folder = root().join("monitoring");
    for (arguments, input) in [
        (["check", "metrics", ""], text.as_str()),
        (["check", "rules", "alerts.yml"], ""),
        (["test", "rules", "alerts.test.yml"], ""),
        (["check", "config", "prometheus.yml"], ""),
    ] {
        let mut command = promtool();
        command.current_dir(&folder).args(arguments.iter().filter(|word| !word.is_empty()));
        if arguments[1] == "config" {
            command.arg("--syntax-only");
        }
        succeeds(command, input);
    }
}

/// Rules and dashboard speak only of metrics that there are, and of every one of them.
#[tokio::test]
async fn dashboard_and_rules_name_only_metrics_that_there_are_and_miss_none() {
    let api = Api::new().await;
    let text = scrape(api.router.clone()).await;
    let known = named(&text);
    let file = |name: &str| std::fs::read_to_string(root().join("monitoring").join(name)).unwrap();
    let (rules, dashboard) = (named(&file("alerts.yml")), file("dashboard.json"));
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    let mut shown = BTreeSet::new();
    for panel in parsed["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            shown.extend(named(target["expr"].as_str().unwrap()));
        }
    }

    assert!(rules.len() > 5 && rules.is_subset(&known), "{:?}", rules.difference(&known));
    assert!(named(&dashboard).is_subset(&known), "{:?}", named(&dashboard).difference(&known));
    assert_eq!(shown, known, "the dashboard shows every metric");
}

/// F-054: readiness over HTTP: what the CLI shows is in the API.
#[tokio::test]
async fn readiness_is_told_over_http_for_items_hosts_and_plans() {
    let world = World::protected().await;
    let found = world.api.get(&format!("{VAULT}/leewardReadiness")).await;
    assert_eq!(found.status, StatusCode::OK);
    let properties = &found.body["properties"];
    let item = &properties["items"][0];
    assert_eq!((&item["name"], &item["lastProven"]), (&json!("web01"), &Value::Null));
    let subjects: Vec<_> = item["checks"].as_array().unwrap().iter().collect();
    assert_eq!(subjects.len(), 7);
    assert_eq!(subjects[2]["subject"], "tested");
    assert_eq!(subjects[2]["level"], "Warning");
    assert_eq!(properties["hosts"][0]["name"], "recovery-host");
    assert_eq!(properties["level"], "Warning");
    let text = scrape(world.api.router.clone()).await;
    assert_eq!(figure(&text, "leeward_item_readiness", &["item=\"web01\""]), Some(1.0));
}
