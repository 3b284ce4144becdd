//! The page of a kit, to be printed: what to do first, the commands, and the kit's own text, so
//! that paper and the passphrase are enough. It holds no secret in the clear.

use super::sealed::KitContents;
use crate::store::time_text;

/// The page as HTML that needs no other file and no network. `fingerprint` is the recovery key's,
/// `kit` the sealed kit as text.
pub(super) fn html(contents: &KitContents, fingerprint: &str, kit: &str) -> String {
    let server = match (&contents.server_endpoint, &contents.server_ca) {
        (Some(endpoint), Some(_)) => format!("{endpoint}; its CA certificate is in the kit"),
        (None, Some(_)) => "its CA certificate is in the kit".to_owned(),
        (Some(endpoint), None) => format!("{endpoint}; its CA certificate is NOT in the kit"),
        (None, None) => "nothing of it is in the kit".to_owned(),
    };
    let facts = [
        ("Store", contents.store_address.clone()),
        ("Store id", contents.store.to_string()),
        ("Recovery key", format!("fingerprint {fingerprint}")),
        ("Locked for", contents.recipients.join(", ")),
        ("Key generation", contents.key_generation.to_string()),
        ("Config server", server),
        (
            "Break-glass account",
            match contents.break_glass_account {
                Some(_) => "its token is in the kit: leeward kit open KIT --account-to FILE",
                None => "none: the kit was not made from a config server's folder",
            }
            .to_owned(),
        ),
        ("Made", format!("{} by leeward {}", time_text(contents.created_at), contents.program)),
        ("Kit", contents.kit.to_string()),
    ];
    let mut rows = String::new();
    for (name, value) in facts {
        rows += &format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(&value));
    }
    let store = escape(&shell_word(&contents.store_address));
    let mut steps = String::new();
    for (what, command) in COMMANDS {
        let command = escape(command).replace("STORE", &store);
        steps += &format!("<li>{}<br><code>{command}</code></li>\n", escape(what));
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <title>Leeward recovery kit</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>Leeward recovery kit</h1>\n<h2>What to do first</h2>\n{FIRST}\n\
         <table>\n{rows}</table>\n\
         <h2>Ten commands</h2>\n<ol>\n{steps}</ol>\n\
         <h2>The kit</h2>\n<p>Sealed with the passphrase. Type it into a file, line ends do not \
         matter, and use that as KIT.</p>\n<pre>{}</pre>\n</body></html>\n",
        escape(kit)
    )
}

const STYLE: &str = "body{font:11pt/1.4 sans-serif;max-width:48em;margin:2em auto}\
    table{border-collapse:collapse}\
    th,td{text-align:left;vertical-align:top;padding:.1em .8em .1em 0}\
    code,pre{font:9.5pt/1.35 monospace;overflow-wrap:anywhere}li{margin:.4em 0}\
    @media print{body{margin:0}}";

const FIRST: &str = "<ol>\n<li>Keep what is left: switch off nothing that still runs, and copy the \
    store before you try anything else, if there is room.</li>\n\
    <li>Take any Linux machine that can read the store, and the program \
    <code>leeward</code>.</li>\n\
    <li>You need this kit and its passphrase. Nothing else: no server, no network, no database.\
    </li>\n</ol>";

/// The commands, in the order in which they are needed.
const COMMANDS: [(&str, &str); 10] = [
    ("See what the kit holds", "leeward kit open KIT"),
    ("Take the recovery key out of it", "leeward kit open KIT --recovery-key-to key.txt"),
    ("What is there?", "leeward store points STORE --recovery-key key.txt"),
    ("How much is it, and what holds it?", "leeward store stats STORE --recovery-key key.txt"),
    ("Is it good?", "leeward store verify STORE --recovery-key key.txt"),
    (
        "Run from it at once: serve a disk",
        "leeward store serve STORE --recovery-key key.txt --item NAME --point latest --disk ID \
         --socket /tmp/disk.sock",
    ),
    (
        "and start a machine on it",
        "qemu-system-x86_64 -m 4096 -drive \
         file=nbd+unix:///?socket=/tmp/disk.sock,format=raw,snapshot=on",
    ),
    (
        "Get a disk back",
        "leeward store restore STORE --recovery-key key.txt --item NAME --point latest --disk ID \
         OUT",
    ),
    (
        "Give the store a new key file, if its own is lost",
        "leeward store rekey STORE --recovery-key key.txt --new-key-file",
    ),
    (
        "Start another config server on the store, when the old one is gone for good; when all is \
         well make and test a new kit",
        "leeward up --data NEW --adopt STORE --kit KIT --listen ADDRESS:8943",
    ),
];

/// A path as one word of a shell.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=+@".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_shows_of_a_path_is_text_and_one_word() {
        assert_eq!(escape("<b>&\"'"), "&lt;b&gt;&amp;&quot;&#39;");
        assert_eq!(shell_word("/srv/store"), "/srv/store");
        assert_eq!(shell_word("/a b"), "'/a b'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }
}
