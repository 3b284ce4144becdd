//! Verbs of recovery points.

use super::{
    CliError,
    items::Named,
    session::{Session, missing, print, text, texts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Subcommand;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Verbs of recovery points.
#[derive(Clone, Debug, Subcommand)]
pub enum PointVerb {
    /// Lists an item's points, newest first.
    List(Named),
    /// Shows a point and how it proved itself.
    Show {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// The point, by id or name.
        #[arg(long)]
        point: String,
    },
    /// Writes the picture that the point's last test took.
    Picture {
        #[command(flatten)]
        #[expect(missing_docs, reason = "its fields say it")]
        item: Named,
        /// The point, by id or name.
        #[arg(long)]
        point: String,
        /// The PNG file to write.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// Finds a point of an item by id or by its name for people.
pub(super) async fn find(session: &Session, item: &Value, point: &str) -> Result<Value, CliError> {
    let path = format!("{}/recoveryPoints", text(&item["id"]));
    let all = session.client.list(&path).await?;
    let found = all.into_iter().find(|one| {
        one["name"] == point || one["properties"]["providerSpecificDetails"]["leewardName"] == point
    });
    let none = || missing(format!("{} has no recovery point {point}", text(&item["name"])));
    found.ok_or_else(none)
}

pub(super) async fn run(session: &Session, verb: PointVerb) -> Result<(), CliError> {
    match verb {
        PointVerb::List(item) => list(session, &item.find(session).await?).await,
        PointVerb::Show { item, point } => {
            let found = find(session, &item.find(session).await?, &point).await?;
            let full = session.client.get(&text(&found["id"])).await?;
            show(session, &full);
            Ok(())
        }
        PointVerb::Picture { item, point, file } => {
            let found = find(session, &item.find(session).await?, &point).await?;
            picture(session, &text(&found["id"]), &file).await
        }
    }
}

async fn list(session: &Session, item: &Value) -> Result<(), CliError> {
    let points = session.client.list(&format!("{}/recoveryPoints", text(&item["id"]))).await?;
    let heads =
        ["ID", "TIME", "KIND", "ORIGIN", "NAME", "HELD AT", "EXPIRES", "VERIFIED", "PINNED BY"];
    session.list(&points, &heads, |point| {
        let details = &point["properties"]["providerSpecificDetails"];
        vec![
            text(&point["name"]),
            text(&point["properties"]["recoveryPointTime"]),
            text(&details["leewardKind"]),
            text(&details["leewardOrigin"]),
            text(&details["leewardName"]),
            text(&details["leewardHeldAt"]),
            text(&details["leewardExpiresAt"]),
            text(&details["leewardVerification"]["state"]),
            texts(&details["leewardPinnedBy"]),
        ]
    });
    Ok(())
}

fn show(session: &Session, point: &Value) {
    let details = &point["properties"]["providerSpecificDetails"];
    let seen = &details["leewardVerification"];
    let position = &details["leewardPosition"];
    let took = seen["tookMilliseconds"].as_u64();
    session.show(
        point,
        &[
            ("id", text(&point["name"])),
            ("name", text(&details["leewardName"])),
            ("time", text(&point["properties"]["recoveryPointTime"])),
            ("received", text(&details["leewardReceivedAt"])),
            ("kind", text(&details["leewardKind"])),
            ("origin", text(&details["leewardOrigin"])),
            ("held at", text(&details["leewardHeldAt"])),
            ("expires", text(&details["leewardExpiresAt"])),
            ("timeline", text(&position["timeline"])),
            ("LSN", text(&position["lsn"])),
            ("pinned by", texts(&details["leewardPinnedBy"])),
            ("verification", text(&seen["state"])),
            ("booted at", text(&seen["bootedAt"])),
            ("took", took.map(|took| format!("{took} ms")).unwrap_or_default()),
            ("probe", text(&seen["probe"])),
            ("seen", text(&seen["seen"])),
            ("picture", text(&seen["picture"])),
        ],
    );
}

async fn picture(session: &Session, point: &str, file: &Path) -> Result<(), CliError> {
    let answer = session.client.get(&format!("{point}/leewardPicture?encoding=base64")).await?;
    let bytes = STANDARD.decode(text(&answer["base64"])).map_err(|error| {
        CliError::Usage(format!("the server's picture of {point} cannot be read: {error}"))
    })?;
    std::fs::write(file, &bytes)
        .map_err(|error| CliError::Usage(format!("could not write {}: {error}", file.display())))?;
    print(&format!("{} bytes written to {}\n", bytes.len(), file.display()));
    Ok(())
}
