//! `leeward kit`: the recovery kit, an encrypted file and a printable page that open a replica
//! store with everything else gone.
//!
//! `sealed` is the file's form, `page` the printable page, `passphrase` asks for the secret that
//! opens it. What a store is lies in `leeward-replica`; reading its points is `leeward store`.

mod page;
mod passphrase;
mod sealed;
mod try_out;

use crate::{
    cli::Output,
    folder::{write_secret, write_whole},
    roles::{host::clock::wall_now, place::StorePlace, up::break_glass},
    store::{
        Failure, blocking, file_problem, finish, place::PlaceOptions, print, print_json, problem,
        time_text,
    },
};
use leeward_model::{Code, UnixMillis};
use leeward_replica::{KitTest, RecipientKind, RecipientSecret, Store};
pub use passphrase::PassphraseOptions;
use sealed::KitContents;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use uuid::Uuid;

/// Largest CA file in bytes that goes into a kit.
const CA_BYTES_MAX: u64 = 64 << 10;

/// The verbs of the recovery kit.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum KitVerb {
    /// Makes a kit: an encrypted file, and a page to print beside it.
    Create(CreateOptions),
    /// Proves in an empty folder that the kit alone opens the store, and notes that in the store.
    Test(TestOptions),
    /// Opens a kit: shows the store's address, writes the recovery key to a file.
    Open(OpenOptions),
}

/// What goes into a kit.
#[derive(Clone, Debug, clap::Args)]
pub struct CreateOptions {
    /// The store, or the folder of `leeward up` or `leeward host` that has it.
    #[arg(long, value_name = "STORE")]
    store: String,
    /// File with the store's recovery key; without it, the file beside the store. `-` is standard
    /// input.
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
    /// The config server's CA certificate; without it, ca.pem in the folder of `leeward up`.
    #[arg(long, value_name = "FILE")]
    server_ca: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseOptions,
    /// The kit to make; the page is KIT.html. Neither may exist.
    #[arg(long, value_name = "KIT")]
    out: PathBuf,
}

/// Which kit to test, and on what.
#[derive(Clone, Debug, clap::Args)]
pub struct TestOptions {
    /// The kit.
    #[arg(value_name = "KIT")]
    kit: PathBuf,
    /// The store, or the folder that has it; without it, where the kit says it is.
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    #[command(flatten)]
    passphrase: PassphraseOptions,
}

/// Which kit to open.
#[derive(Clone, Debug, clap::Args)]
pub struct OpenOptions {
    /// The kit.
    #[arg(value_name = "KIT")]
    kit: PathBuf,
    /// File to write the recovery key to; it must not exist.
    #[arg(long, value_name = "FILE")]
    recovery_key_to: Option<PathBuf>,
    /// File to write the config server's CA certificate to; it must not exist.
    #[arg(long, value_name = "FILE")]
    server_ca_to: Option<PathBuf>,
    /// File to write the break-glass account's token to, for --token-file; it must not exist.
    #[arg(long, value_name = "FILE")]
    account_to: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseOptions,
}

/// Runs a verb; exit codes are those of `leeward store`.
pub async fn run(verb: KitVerb, output: Output) -> ExitCode {
    finish(
        blocking(move || match verb {
            KitVerb::Create(options) => create(&options, output),
            KitVerb::Test(options) => test(&options, output),
            KitVerb::Open(options) => open(&options, output),
        })
        .await,
    )
}

/// A store that a person named: itself, or a role's folder around it.
struct Found {
    place: PlaceOptions,
    /// The role's folder, if that was named.
    data: Option<PathBuf>,
}

fn find(text: &str) -> Found {
    let data = Path::new(text);
    let inner = data.join("store");
    if data.join("leeward.role").exists()
        && let Ok(at) = StorePlace::of(data, None)
    {
        return Found { place: at.options().clone(), data: Some(data.to_owned()) };
    }
    if !data.join("store.json").exists() && inner.join("store.json").exists() {
        let store = inner.to_string_lossy().into_owned();
        return Found { place: store.into(), data: Some(data.to_owned()) };
    }
    Found { place: text.to_owned().into(), data: None }
}

/// The address of a store from anywhere on this machine.
fn address(store: &str) -> String {
    let whole = Path::new(store).canonicalize().ok();
    whole.map_or_else(|| store.to_owned(), |path| path.to_string_lossy().into_owned())
}

fn create(options: &CreateOptions, output: Output) -> Result<(), Failure> {
    let what = || format!("no kit was made for the store in {}", options.store);
    let found = find(&options.store);
    let page = page_of(&options.out);
    for path in [&options.out, &page] {
        if path.exists() {
            let cause = format!("{} exists, and a kit is never overwritten", path.display());
            return Err(problem(Code::NAME_TAKEN, what(), cause));
        }
    }
    // Without a key file the recovery key, which is needed anyway, opens the store.
    let (store, recovery) = unlock(options, &found)?;
    let passphrase = options.passphrase.ask_twice()?;
    let (kit, created_at) = (Uuid::new_v4(), wall_now());
    let contents = KitContents {
        format: sealed::CONTENTS_FORMAT,
        kit,
        created_at,
        store: store.identity().store,
        store_address: address(&found.place.store),
        key_generation: store.key_generation(),
        recipients: store.recipients(),
        recovery_key: recovery.to_text(),
        server_ca: server_ca(options, &found)?,
        server_endpoint: found.data.as_ref().and_then(|data| endpoint(data)),
        break_glass_account: account(&found, kit, created_at)?,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let text = sealed::seal(&contents, &passphrase)?;
    let html = page::html(&contents, &recovery.fingerprint(), &text);
    write_secret(&options.out, text.as_bytes()).map_err(|error| file_problem(what(), &error))?;
    write_whole(&page, html.as_bytes()).map_err(|error| {
        let what = format!("the kit is in {}, without its page", options.out.display());
        file_problem(what, &error)
    })?;
    if output == Output::Json {
        print_json(&json!({
            "kit": contents.kit, "file": options.out, "page": page, "store": contents.store,
            "storeAddress": contents.store_address, "keyGeneration": contents.key_generation,
            "recoveryKeyFingerprint": recovery.fingerprint(),
            "serverCa": contents.server_ca.is_some(),
            "breakGlassAccount": contents.break_glass_account.is_some(),
            "createdAt": time_text(contents.created_at),
        }));
        return Ok(());
    }
    let ca = if contents.server_ca.is_some() { "with" } else { "WITHOUT" };
    print(&format!(
        "the kit is in {}, {ca} the config server's CA; print {}\n\
         it counts once it was tested: leeward kit test {} --store {}\n",
        options.out.display(),
        page.display(),
        options.out.display(),
        options.store
    ));
    Ok(())
}

/// The secret of a break-glass account, if the kit is of a config server: that has its hash from
/// now on.
fn account(found: &Found, kit: Uuid, at: UnixMillis) -> Result<Option<String>, Failure> {
    let Some(data) = found.data.as_ref().filter(|data| data.join("ca.key").exists()) else {
        return Ok(None);
    };
    let made = break_glass::make(data, kit, at);
    made.map(Some).map_err(|error| file_problem("no break-glass account was made", &error))
}

fn page_of(kit: &Path) -> PathBuf {
    let mut name = kit.as_os_str().to_owned();
    name.push(".html");
    PathBuf::from(name)
}

/// Opens the store, and finds a recovery key that fits it.
fn unlock(options: &CreateOptions, found: &Found) -> Result<(Store, RecipientSecret), Failure> {
    let place = &found.place;
    let given = options.recovery_key.iter().cloned();
    let files: Vec<PathBuf> = match &options.recovery_key {
        Some(_) => given.collect(),
        None => candidates(found),
    };
    for file in &files {
        let place = PlaceOptions { recovery_key: Some(file.clone()), ..place.clone() };
        let opened =
            place.secret().and_then(|secret| Ok((place.open_with(secret.clone())?, secret)));
        match opened {
            Ok((store, Some(secret))) if secret.kind() == RecipientKind::Recovery => {
                return Ok((store, secret));
            }
            Err(failure) if options.recovery_key.is_some() => return Err(failure),
            Ok(_) | Err(_) => {}
        }
    }
    let what = format!("no kit was made for the store in {}", place.store);
    // What is wrong with the store itself comes first.
    place.open()?;
    let cause = format!(
        "its recovery key is in none of the {} files beside it; give it with --recovery-key FILE. \
         If it is lost: `leeward store rekey STORE --recovery` draws another one",
        files.len()
    );
    Err(problem(Code::KEY_MISSING, what, cause))
}

/// Files in which Leeward leaves recovery keys: beside the store, or in the role's folder.
fn candidates(found: &Found) -> Vec<PathBuf> {
    let store = PathBuf::from(address(&found.place.store));
    let folder = found.data.as_deref().or(store.parent());
    let (Some(folder), Some(name)) = (folder, store.file_name()) else {
        return Vec::new();
    };
    let own = format!("{}.recovery-key", name.to_string_lossy());
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let is_key = |name: &String| name.starts_with(&own) || name.starts_with("recovery-key");
    names.retain(|name| is_key(name) && name.ends_with(".txt"));
    names.sort();
    names.iter().map(|name| folder.join(name)).collect()
}

fn server_ca(options: &CreateOptions, found: &Found) -> Result<Option<String>, Failure> {
    let beside = found.data.as_ref().map(|data| data.join("ca.pem")).filter(|path| path.exists());
    let Some(file) = options.server_ca.clone().or(beside) else { return Ok(None) };
    let what = || format!("the CA certificate in {} cannot be used", file.display());
    let fail = |cause: &str| problem(Code::BAD_REQUEST, what(), cause);
    let len = std::fs::metadata(&file).map_err(|error| fail(&error.to_string()))?.len();
    if len > CA_BYTES_MAX {
        return Err(fail("it is larger than 64 KiB"));
    }
    let text = std::fs::read_to_string(&file).map_err(|error| fail(&error.to_string()))?;
    if text.contains("PRIVATE KEY") {
        return Err(fail("it holds a private key: give the certificate"));
    }
    if !text.contains("BEGIN CERTIFICATE") {
        return Err(fail("it is no certificate in PEM"));
    }
    Ok(Some(text))
}

fn endpoint(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join("endpoint")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn read_kit(path: &Path, passphrase: &PassphraseOptions) -> Result<KitContents, Failure> {
    let text = sealed::read(path)?;
    sealed::open(path, &text, &passphrase.ask()?)
}

/// The recovery key in a kit.
///
/// # Errors
/// `NOT_FOUND`, `BAD_REQUEST`, `KEY_MISSING`: see the kit's form.
pub(crate) fn recovery_key(kit: &Path, passphrase: &PassphraseOptions) -> Result<String, Failure> {
    Ok(read_kit(kit, passphrase)?.recovery_key)
}

fn test(options: &TestOptions, output: Output) -> Result<(), Failure> {
    let contents = read_kit(&options.kit, &options.passphrase)?;
    let named = options.store.as_deref().unwrap_or(&contents.store_address);
    let found = find(named);
    let store = address(&found.place.store);
    let seen = try_out::points(&store, &contents.recovery_key)?;
    let test = KitTest {
        kit: contents.kit,
        created_at: contents.created_at,
        tested_at: wall_now(),
        points: seen.points,
    };
    // Only now is anything but the kit used: the key file, to note what was proved.
    let noted = found.place.open().and_then(|opened| {
        if opened.identity().store != contents.store {
            let what = format!("the kit is not of the store in {store}");
            let cause = format!("it is of store {}", contents.store);
            return Err(problem(Code::STORE_FOREIGN, what, cause));
        }
        let noted = opened.kit_tested(&test);
        noted.map_err(|error| found.place.failed("could not note the test of the kit", &error))
    });
    let noted = match noted {
        Err(failure) if failure.code == Code::STORE_FOREIGN.code => return Err(failure),
        noted => noted,
    };
    let moved = store != contents.store_address;
    let account = account_test(&found, &contents)?;
    if output == Output::Json {
        print_json(&json!({
            "kit": contents.kit, "store": contents.store, "points": seen.points,
            "items": seen.items, "testedAt": time_text(test.tested_at),
            "keyGeneration": contents.key_generation, "recorded": noted.is_ok(),
            "storeAddressInKit": contents.store_address, "storeMoved": moved,
            "breakGlassAccount": account,
        }));
    } else {
        print(&format!(
            "the kit alone opened the store: {} points of {} items\n",
            seen.points, seen.items
        ));
        if account {
            print("its break-glass account is known to the config server\n");
        }
        if moved {
            print(&format!("the kit says that the store is in {}\n", contents.store_address));
        }
    }
    noted.map(drop)
}

/// Proves that the config server whose folder was named knows the kit's account; false when there
/// is no account, or no such folder was named.
///
/// # Errors
/// `UNAUTHORIZED` when it does not: the kit would not open the API.
fn account_test(found: &Found, contents: &KitContents) -> Result<bool, Failure> {
    let server = found.data.as_ref().filter(|data| data.join("ca.key").exists());
    let (Some(secret), Some(data)) = (&contents.break_glass_account, server) else {
        return Ok(false);
    };
    let what = "the kit's break-glass account was not tested";
    let known = break_glass::check(data, secret).map_err(|error| file_problem(what, &error))?;
    if known.is_none() {
        let what = "the kit's break-glass account is not known to the config server";
        let cause = format!("{} has no hash of it: make another kit", data.display());
        return Err(problem(Code::UNAUTHORIZED, what, cause));
    }
    Ok(true)
}

fn open(options: &OpenOptions, output: Output) -> Result<(), Failure> {
    let contents = read_kit(&options.kit, &options.passphrase)?;
    let files = [
        (&options.recovery_key_to, Some(format!("{}\n", contents.recovery_key))),
        (&options.server_ca_to, contents.server_ca.clone()),
        (
            &options.account_to,
            contents.break_glass_account.as_ref().map(|text| text.clone() + "\n"),
        ),
    ];
    for (path, text) in files {
        let Some(path) = path else { continue };
        let what = || format!("{} was not written", path.display());
        if path.exists() {
            return Err(problem(Code::NAME_TAKEN, what(), "it exists, and is never overwritten"));
        }
        let Some(text) = text else {
            return Err(problem(Code::NOT_FOUND, what(), "the kit was made without it"));
        };
        let path = std::path::absolute(path).map_err(|error| file_problem(what(), &error))?;
        write_secret(&path, text.as_bytes()).map_err(|error| file_problem(what(), &error))?;
    }
    if output == Output::Json {
        print_json(&json!({
            "kit": contents.kit, "store": contents.store,
            "storeAddress": contents.store_address, "keyGeneration": contents.key_generation,
            "recipients": contents.recipients, "createdAt": time_text(contents.created_at),
            "serverEndpoint": contents.server_endpoint,
            "serverCa": contents.server_ca.is_some(),
            "breakGlassAccount": contents.break_glass_account.is_some(),
        }));
        return Ok(());
    }
    print(&format!(
        "store {} in {}\nmade {} by leeward {}\n",
        contents.store,
        contents.store_address,
        time_text(contents.created_at),
        contents.program
    ));
    if let Some(file) = &options.recovery_key_to {
        print(&format!("the recovery key is in {}: delete it when done\n", file.display()));
    }
    Ok(())
}
