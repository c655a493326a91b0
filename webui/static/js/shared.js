// A shared worker: runs once in a browser and follows sessions for all of its visible pages, since a browser allows six
// connections to one server and an event stream keeps one. So pages of one session share a stream, and of many sessions
// at once only the first few have one: the others are asked about every second.

import { Questions, Stream } from "./stream.js";

const MOST_STREAMS = 3; // the other connections are for labels, clips and videos
const EVERY_MS = 1000;

const followed = new Map(); // a session's address -> Followed

class Followed {
  ports = new Set();
  streams = null; // whether by a stream
  #base;
  #source = null;
  #known = {}; // what a page that joins is told

  constructor(base, streams) {
    this.#base = base;
    this.open(streams);
  }

  open(streams) {
    this.close();
    this.streams = streams;
    const tell = (news) => this.#tell(news);
    this.#source = streams ? new Stream(this.#base, tell) : new Questions(this.#base, EVERY_MS, tell);
  }

  join(port) {
    this.ports.add(port);
    port.postMessage(this.#known);
  }

  close() {
    this.#source?.close();
  }

  #tell(news) {
    Object.assign(this.#known, news);
    for (const port of this.ports) port.postMessage(news);
  }
}

function follow(port, base) {
  leave(port);
  if (!followed.has(base)) {
    const streams = [...followed.values()].filter((one) => one.streams).length;
    followed.set(base, new Followed(base, streams < MOST_STREAMS));
  }
  followed.get(base).join(port);
}

function leave(port) {
  for (const [base, one] of followed) {
    if (!one.ports.delete(port) || one.ports.size) continue;
    one.close();
    followed.delete(base);
    if (one.streams) [...followed.values()].find((other) => !other.streams)?.open(true);
  }
}

addEventListener("connect", ({ ports: [port] }) => {
  port.onmessage = ({ data }) => (data.follow ? follow(port, data.follow) : leave(port));
  port.onclose = () => leave(port); // a page that crashed, where the browser tells
});
