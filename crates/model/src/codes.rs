//! The registry of operator errors: a stable code, what usually causes it, what to do.
//!
//! Every code has a page `docs/errors/LW-NNNN.md`; a test keeps both sides together. Codes are
//! never reused. 01xx requests, 02xx hosts and machines, 03xx failover jobs, 04xx replica store,
//! 05xx sessions and trust, 06xx capture, 07xx starting the roles, 08xx watching.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What an operator reads when something went wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `LW-NNNN`.
    pub code: String,
    /// What happened to which object.
    pub what: String,
    /// The likely cause.
    pub cause: String,
    /// The state things are in now.
    pub now: String,
    /// What to do.
    pub todo: String,
}

impl Problem {
    /// Whether the same again cannot work until a person changes something: who the two ends are,
    /// or a replica that is not valid (F-155).
    pub fn is_final(&self) -> bool {
        let finals = [
            Code::UNAUTHORIZED,
            Code::STORE_DAMAGED,
            Code::STORE_FOREIGN,
            Code::KEY_MISSING,
            Code::WRONG_KEY,
            Code::WRONG_CA,
            Code::VERSION_MISMATCH,
        ];
        finals.iter().any(|code| code.code == self.code)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { code, what, cause, now, todo } = self;
        write!(f, "{code}: {what}\n  cause: {cause}\n  now:   {now}\n  do:    {todo}")
    }
}

impl std::error::Error for Problem {}

/// An entry of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `LW-NNNN`.
    pub code: &'static str,
    /// One line: what the code stands for.
    pub title: &'static str,
    /// The usual cause.
    pub cause: &'static str,
    /// The state in which Leeward leaves things.
    pub now: &'static str,
    /// What the operator does.
    pub todo: &'static str,
}

impl Code {
    /// The code that a text `LW-NNNN: words` begins with, and the words.
    pub fn parse(text: &str) -> Option<(Code, &str)> {
        let (code, words) = text.split_once(": ")?;
        CODES.iter().find(|known| known.code == code).map(|known| (*known, words))
    }

    /// The problem of this code for one object; `what` says what happened to which object.
    pub fn problem(&self, what: impl Into<String>) -> Problem {
        Problem {
            code: self.code.into(),
            what: what.into(),
            cause: self.cause.into(),
            now: self.now.into(),
            todo: self.todo.into(),
        }
    }

    /// As [`Self::problem`], with a cause that is known better than the registry knows it.
    pub fn because(&self, what: impl Into<String>, cause: impl Into<String>) -> Problem {
        Problem { cause: cause.into(), ..self.problem(what) }
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal $title:literal
       cause $cause:literal now $now:literal todo $todo:literal)*) => {
        impl Code {$(
            #[doc = $title]
            pub const $name: Code =
                Code { code: $code, title: $title, cause: $cause, now: $now, todo: $todo };
        )*}
        /// Every code, in ascending order.
        pub const CODES: &[Code] = &[$(Code::$name),*];
    };
}

codes! {
    BAD_REQUEST = "LW-0101" "the request is not valid"
        cause "a field is missing or has a value that is not allowed"
        now "nothing was changed" todo "correct the named field and send the request again"
    NOT_SUPPORTED = "LW-0102" "this operation is not supported yet"
        cause "Leeward does not have it; the support matrix in the README says what it has"
        now "nothing was changed" todo "use one of the supported operations"
    NOT_FOUND = "LW-0103" "there is no such object"
        cause "the name is misspelt, or the object was removed"
        now "nothing was changed" todo "list the objects of this kind and use a name from the list"
    ITEM_BUSY = "LW-0104" "another job is at work on this item"
        cause "one job at a time may change an item"
        now "the running job goes on; this request started nothing"
        todo "wait for the running job, or cancel it, and try again"
    NOT_POSSIBLE_NOW = "LW-0105" "the item's state does not allow this operation"
        cause "the operation belongs to another stage of the item's life"
        now "nothing was changed" todo "choose one of the item's allowed operations"
    UNAUTHORIZED = "LW-0106" "the request carries no valid token"
        cause "the token is missing, misspelt or belongs to another config server"
        now "nothing was changed" todo "use the token in admin.token of this config server's folder"
    ROLE_AWAY = "LW-0107" "the host that knows the answer is not connected"
        cause "the host is down, or its link to the config server is cut"
        now "nothing was changed; what the host holds is untouched"
        todo "bring the host or its link back and ask again"
    NAME_TAKEN = "LW-0108" "the name is in use"
        cause "an object of this kind and name exists with other properties"
        now "the existing object is unchanged" todo "choose another name"
    INTERNAL = "LW-0109" "the config server hit an error of its own"
        cause "a bug or a broken disk; the server's log has the details"
        now "what was stored before the request is stored; the request changed nothing else"
        todo "read the server's log, and report it with the log if it is a bug"
    FORBIDDEN = "LW-0110" "the caller's role does not allow this operation"
        cause "the token belongs to a role with fewer rights"
        now "nothing was changed" todo "ask an owner of the vault to do it"
    MIGRATED = "LW-0111" "the machine was migrated for good"
        cause "its migration was completed: that ends the item, and there is no way back in it"
        now "the machine runs at its new site; the old one is off and was not deleted"
        todo "protect the machine anew at its new site"
    NOT_OF_THIS_PROVIDER = "LW-0112" "machines of KVM hosts do not have this"
        cause "the operation is about agents, gateways or single disks, which others have"
        now "nothing was changed" todo "do what the message says instead, or leave it out"
    FORGOTTEN = "LW-0113" "an item was forgotten while one of its hosts was away"
        cause "it was purged, which waits for no host"
        now "the item is gone; that host still has its points, and its mark beside the machine"
        todo "on that host: delete .leeward-item beside machine.toml to protect the machine again"

    MACHINE_UNKNOWN = "LW-0201" "the host has no such machine"
        cause "its folder was removed or renamed, or the host's machine folder is another one"
        now "nothing was changed" todo "look at the host's list of machines"
    DISK_MISSING = "LW-0202" "a disk image of the machine is missing"
        cause "the file was moved or deleted, or its file system is not mounted"
        now "the machine is not captured; its recovery points are untouched"
        todo "put the image back where machine.toml says, or correct machine.toml"
    DISK_TWICE = "LW-0203" "one image is given twice"
        cause "two disks name the same file, in one machine or in two"
        now "the machine is not captured" todo "give every disk an image of its own"
    DISK_RESIZED = "LW-0204" "a disk has another size than at the last recovery point"
        cause "its image was grown or shrunk"
        now "earlier points keep the earlier size; the disk is read in full for the next point"
        todo "nothing, if the change was meant"
    MACHINE_INVALID = "LW-0205" "the machine's description cannot be used"
        cause "machine.toml has an error"
        now "the machine is listed as not protectable" todo "correct the named field"
    START_FAILED = "LW-0206" "the machine could not be started"
        cause "QEMU refused its arguments or ended at once"
        now "the machine is off; its disks are unchanged"
        todo "read qemu.log in the machine's run folder, correct the cause, try again"
    STOP_NOT_CONFIRMED = "LW-0207" "the machine's stop could not be confirmed"
        cause "its host does not answer, or the process cannot be ended"
        now "the machine may still run"
        todo "make sure that it is off, then answer the job"
    NO_PERMIT = "LW-0208" "the machine may not be started here"
        cause "this host holds no start permit for it: it was failed over, or the config server \
               could not be asked after a reboot"
        now "the machine is off"
        todo "connect the host to its config server; in an emergency start it with --i-am-sure"
    STALE_MACHINE_FENCED = "LW-0209" "a machine that was failed over was found running and stopped"
        cause "its host was cut off while the failover ran"
        now "it is off; what it wrote in the meantime is kept as a divergent point"
        todo "look at the divergent point before its retention ends"
    QMP_FAILED = "LW-0210" "QEMU did not do what it was asked"
        cause "the machine ended, or its QEMU does not know the command"
        now "the operation was given up; the machine itself was not changed"
        todo "look at the host's log; QEMU 7.1 or newer is needed"
    MACHINE_FOREIGN = "LW-0211" "the host has another machine of this name"
        cause "the owner made a machine of that name, or its folder came from elsewhere"
        now "that machine was not touched: nothing of it was read into a replica or written"
        todo "rename one of the two machines, then try again"

    SHUTDOWN_FAILED = "LW-0301" "the source machine could not be shut down before the failover"
        cause "the guest did not react in time, or its host does not answer"
        now "the failover goes on; the machine may still run at its old site"
        todo "power the old machine off before you commit, or it writes data nobody keeps"
    SOURCE_AWAY = "LW-0302" "the source host is not connected; the shutdown was skipped"
        cause "the host is down, or its link is cut"
        now "the failover goes on with the newest complete recovery point"
        todo "make sure that the old machine is off; until then both sides may be live"
    NO_POINT = "LW-0303" "there is no recovery point to fail over to"
        cause "the first copy is not complete yet, or the chosen point expired"
        now "nothing was changed; replication goes on"
        todo "choose a listed point, or wait for the first one"
    BOTH_MAY_BE_LIVE = "LW-0304" "both sides may be live"
        cause "the machine was failed over without a confirmed stop of the old one"
        now "the new machine runs; the old one was not reached"
        todo "switch the old machine off; the error ends when its host confirms it"
    TARGET_AWAY = "LW-0305" "the target host is not connected"
        cause "the host is down, or its link is cut"
        now "nothing was changed at the target; the job retries"
        todo "bring the target host back"
    PROBE_FAILED = "LW-0306" "the test machine did not show what its probe asks for"
        cause "the machine did not boot, or its workload is broken at this point"
        now "the test machine still runs in its isolated network; the point is marked as failed"
        todo "look at its display and console, then clean up the test"
    INSTANCE_FAILED = "LW-0307" "the machine could not be made from the recovery point"
        cause "the export, the overlay or QEMU failed at the target host"
        now "the recovery point is unchanged" todo "read the named log, correct the cause, retry"
    STEP_TIMED_OUT = "LW-0308" "a step took longer than it may"
        cause "a host is too slow or does not answer"
        now "the job tries again or is undone, as its list says"
        todo "look at the named host"
    SOURCE_NOT_OFF = "LW-0309" "the planned failover waits: the source machine is not off"
        cause "the guest did not react in time, or its host did not confirm the end"
        now "nothing irreversible was done; the machine runs where it ran and is replicated"
        todo "resume the job to try again, resume it with the comment power-off to switch the \
              machine off, or cancel it"
    STILL_HYDRATING = "LW-0310" "the machine still reads data from the store"
        cause "it was started from a recovery point and has not taken over all its data yet"
        now "it runs; its data are moved in the background"
        todo "wait until it holds all its data, and try again"
    SEED_FAILED = "LW-0311" "the old disks could not be used for the way back"
        cause "they cannot be read, or the host's own store cannot take them"
        now "the old disks are unchanged and the machine goes on where it runs"
        todo "correct the cause; the job goes on by itself, or cancel it"
    REPROTECT_GIVEN_UP = "LW-0312" "the reprotect that the planned failover began with was given up"
        cause "somebody cancelled it, or a failover from a recovery point took its place"
        now "the machine runs where it ran; it was not shut down"
        todo "look at the reprotect's job; start the planned failover again when you want it"

    PLAN_PARTLY = "LW-0331" "some machines of the recovery plan did not go along"
        cause "the jobs of those machines were refused, failed or were cancelled"
        now "the other machines went; those that failed are where their own jobs left them"
        todo "look at the jobs of the named machines; do the rest with those items"
    PLAN_FAILED = "LW-0332" "no machine of the recovery plan went"
        cause "the jobs of all its machines were refused, failed or were cancelled"
        now "each machine is where its own job left it"
        todo "look at the jobs of the named machines, correct the cause, run the plan again"
    PLAN_TURNED_BACK = "LW-0333" "the planned failover of the recovery plan turned back"
        cause "one machine could not be made ready, and a planned failover moves all or none"
        now "no machine was moved; those that were shut down are started again where they ran"
        todo "correct what the named machine's job says, and run the plan again"

    PLAN_ACTION_FAILED = "LW-0334" "an action of the recovery plan failed"
        cause "the program, the server or the address that it needs said no, or not in time"
        now "an unplanned failover and a test go on without it; a planned failover waits"
        todo "correct the cause; resume the job to do the action again, resume it with the \
              comment go-on to go on without, or cancel it"
    PLAN_ACTION_STAYS = "LW-0335" "an action of the recovery plan could not be taken back"
        cause "what it needs does not answer, or somebody has changed the same thing since"
        now "the machines are back; what the named action did is still there"
        todo "take the named action back by hand"

    STORE_NO_SPACE = "LW-0401" "the replica store has no space left"
        cause "its file system or its quota is full"
        now "replication pauses; the guest goes on; recovery points are untouched"
        todo "make space; replication resumes by itself"
    STORE_DAMAGED = "LW-0402" "data in the replica store are damaged"
        cause "the disk below returned other bytes than were written"
        now "the damaged bytes are refused, never served"
        todo "choose a point that does not need them, and check the disk"
    STORE_FOREIGN = "LW-0403" "the folder belongs to another site"
        cause "the folder was made by another config server, vault or role"
        now "nothing in the folder was changed" todo "give this process a folder of its own"
    STORE_FENCED = "LW-0404" "the store refused data of an older epoch"
        cause "the machine was failed over while its host was away"
        now "no byte of the old epoch was taken" todo "nothing; the host fences its machine"
    STORE_IO = "LW-0405" "the replica store could not be read or written"
        cause "the disk below reported an error, or the bucket or the way to it did"
        now "nothing that was not durable was acknowledged"
        todo "check the disk; of a store in a bucket its service, the network and the rights of \
              its credentials. Replication tries again by itself"
    KEY_MISSING = "LW-0406" "the store's key file is missing or does not open the store"
        cause "the file was lost or replaced, or the folder came from elsewhere"
        now "nothing can be read; nothing was changed"
        todo "put the key file back, or use the recovery recipient's key"
    KIT_UNTESTED = "LW-0407" "no recovery kit was made and tested since the last key change"
        cause "none was ever tested, or the store's recovery key or key file changed since"
        now "replication and failover work; if the site's servers are lost, nothing is known to \
             open the store"
        todo "make one with leeward kit create, test it with leeward kit test, keep it elsewhere"

    REPLICA_DIFFERED = "LW-0408" "a replica differed from its machine where nothing was written"
        cause "a disk, its cable or memory changed bytes by itself, or a program wrote to the \
               image behind QEMU's back"
        now "the machine's bytes were sent again: recovery points from the next one on have them, \
             earlier ones have what was replicated then"
        todo "check the disks of both ends, run leeward store verify, and test the next point with \
              a test failover; the error ends when a whole comparison finds nothing more"

    SERVED_WRITABLE = "LW-0409" "a point is served for writing by hand"
        cause "somebody ran leeward store serve --writable on this store: a machine may run from it"
        now "the point itself does not change; what is written lies in an overlay that no \
             failover and no fence knows"
        todo "find out what runs from it before you start, fail over or bring home this machine: \
              two of it may be live. It ends with that process"

    WRONG_KEY = "LW-0501" "the registration key is not valid"
        cause "it is misspelt, was used before, has expired, or belongs to another config server"
        now "the host did not join" todo "make a new registration key and use it once"
    WRONG_CA = "LW-0502" "the other end's certificate is not from this installation"
        cause "wrong ca.pem, wrong address, or somebody in between"
        now "no data were exchanged" todo "check the address and ca.pem"
    PLAINTEXT = "LW-0503" "the connection is not encrypted"
        cause "the client spoke plain HTTP to a TLS port"
        now "the connection was closed" todo "use https:// and ca.pem"
    VERSION_MISMATCH = "LW-0504" "the two ends speak no common protocol version"
        cause "one of them is too old"
        now "no session was made" todo "upgrade the older end"

    SERVER_AWAY = "LW-0505" "the config server cannot be reached"
        cause "it is not running, the address is wrong, or the link is cut"
        now "nothing was asked; replication and running machines do not need this"
        todo "check the address and that leeward up runs there, and try again"

    CAPTURE_FAILED = "LW-0601" "a recovery point could not be cut"
        cause "QEMU refused a step, or the machine ended"
        now "no change is lost: the bitmaps were merged; the next cut takes them"
        todo "nothing, if it happens once; else read the host's log"
    RESYNC_NEEDED = "LW-0602" "source and target have to be compared"
        cause "QEMU or its host was restarted, an image was changed while the machine was off, or \
               more was written than the policy lets a delta carry"
        now "recovery points are kept; the item is resynchronizing, or waits for its window"
        todo "nothing; it goes on by itself. Start a resync by hand to have it at once"
    RPO_EXCEEDED = "LW-0603" "the newest recovery point is older than the policy's threshold"
        cause "the source host or the link is away, or the store is full"
        now "the guest goes on; its changes are noted"
        todo "look at the item's other health errors"
    SPOOL_FULL = "LW-0604" "the host's spool has no room for more points"
        cause "the store is away, or slower than the machines write, for longer than the room lasts"
        now "the guests go on and their changes are noted; points are cut again once there is room"
        todo "bring the store or the link back; give the spool more room if this happens often"

    FOLDER_IN_USE = "LW-0701" "another process uses this folder"
        cause "a Leeward process was started on it before and still runs"
        now "the running process goes on; this one ended"
        todo "use the running one, or end it first"
    PORT_IN_USE = "LW-0702" "the address cannot be listened on"
        cause "another process has the port, or the address is not this machine's"
        now "nothing was changed" todo "choose another address or end the other process"
    SUPERSEDED = "LW-0711" "another config server is in charge of this site"
        cause "the site's store was adopted while this config server was away or cut off"
        now "this one changes nothing any more: it only shows what it knew"
        todo "use the other config server, and let hosts dial it: leeward host --join its address"
    OWNER_ALIVE = "LW-0712" "the store's owner wrote into it less than five minutes ago"
        cause "its config server still runs, or ended a moment ago; or a clock is wrong"
        now "nothing was adopted and nothing was changed"
        todo "end it, or wait five minutes; --force-takeover adopts at once, if it is gone for good"
    ADOPTION_UNFINISHED = "LW-0713" "the adoption of a store was not finished in this folder"
        cause "the process ended, or was refused, before it had taken everything over"
        now "the store is whole; this folder is not used"
        todo "run the same leeward up --adopt again"
    AUDIT_LOG_BROKEN = "LW-0801" "the audit log is not as it was written"
        cause "somebody changed the config server's database, or put an old copy of it back"
        now "the log goes on; entries from the named one on prove nothing"
        todo "find out who had access to the database; compare with the heads in the server's own \
              log and with copies of it, and change the tokens"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            for code in CODES {
                std::fs::write(format!("{folder}/{}.md", code.code), page(code)).unwrap();
            }
        }
        let mut pages: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "README.md")
            .collect();
        pages.sort();
        let codes: Vec<_> = CODES.iter().map(|code| format!("{}.md", code.code)).collect();

        assert_eq!(pages, codes);
        for code in CODES {
            let text = std::fs::read_to_string(format!("{folder}/{}.md", code.code)).unwrap();
            for part in [code.title, code.cause, code.now, code.todo] {
                assert!(text.contains(part), "the page of {} does not say: {part}", code.code);
            }
        }
    }

    fn page(code: &Code) -> String {
        let Code { code, title, cause, now, todo } = code;
        format!(
            "# {code}: {title}\n\n**Likely cause.** {cause}.\n\n**State now.** {now}.\n\n\
             **What to do.** {todo}.\n"
        )
    }

    #[test]
    fn codes_ascend_and_never_repeat() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
    }
}
