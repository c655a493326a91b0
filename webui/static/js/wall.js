// The wall: the agent after every round, all playing from one clock. Only what is on screen is loaded and plays.

import { Compare } from "./compare.js";
import { fetchRounds } from "./rounds.js";
import { Tile } from "./tile.js";
import { Together, connectDeck } from "./together.js";
import { sharedScale } from "./trace.js";

const MARGIN = "200px"; // beyond the screen, so that a video is there when one scrolls to it

const $ = (id) => document.getElementById(id);

export class Wall {
  #base;
  #tiles = new Map(); // by round
  #inView = new Set();
  #together = new Together(() => this.#tick());
  #paint = connectDeck($("wall-deck"), this.#together);
  #compare = new Compare();
  #asked = null;
  #shown = null; // the answer that is on screen
  #awake = false;
  #observer = new IntersectionObserver((entries) => this.#moved(entries), {
    root: $("watch-view"),
    rootMargin: `${MARGIN} 0px`,
  });

  constructor(base) {
    this.#base = base;
  }

  async show(state) {
    this.#wake(true);
    const asked = (this.#asked = fetchRounds(this.#base, state));
    const answer = await asked;
    if (!answer || answer === this.#shown || asked !== this.#asked) return; // a newer one is on its way
    this.#shown = answer;
    if (this.#awake) this.#draw(answer);
  }

  leave() {
    this.#wake(false);
  }

  #wake(awake) {
    if (awake === this.#awake) return;
    this.#awake = awake;
    if (awake) this.#together.wake();
    else this.#together.sleep();
    if (!awake) this.#compare.leave();
    else if (this.#shown) this.#draw(this.#shown);
  }

  #draw({ judge, rounds: all }) {
    const rounds = all.filter((round) => round.url);
    const scale = sharedScale(rounds);
    $("wall").hidden = !rounds.length;
    $("wall-judged").hidden = judge === null;
    for (const round of rounds) {
      if (!this.#tiles.has(round.round)) this.#add(round.round);
      this.#tiles.get(round.round).show(round, scale);
    }
    const there = new Set(rounds.map((round) => round.round));
    for (const [number, tile] of this.#tiles) if (!there.has(number)) this.#remove(number, tile);
    this.#compare.show(rounds, scale);
    $("wall").dispatchEvent(new CustomEvent("tiles", { bubbles: true, detail: rounds })); // for who fills tile-actions
  }

  #add(number) {
    const tile = new Tile(number, (time) => {
      this.#together.pause();
      this.#together.time = time; // from there they go on, when they do
      this.#paint();
    });
    tile.video.addEventListener("loadedmetadata", () => {
      const { videoWidth, videoHeight } = tile.video; // the others are of the same shape, loaded or not
      $("tiles").style.setProperty("--shape", `${videoWidth} / ${videoHeight}`);
    });
    tile.video.addEventListener("error", () => this.#together.remove(tile.video));
    const after = [...this.#tiles.entries()].filter(([n]) => n > number).sort(([a], [b]) => a - b)[0];
    $("tiles").insertBefore(tile.node, after ? after[1].node : null);
    this.#tiles.set(number, tile);
    this.#observer.observe(tile.node);
  }

  #remove(number, tile) {
    this.#observer.unobserve(tile.node);
    this.#together.remove(tile.video);
    tile.node.remove();
    this.#tiles.delete(number);
    this.#inView.delete(tile);
  }

  #moved(entries) {
    for (const { target, isIntersecting } of entries) {
      const tile = this.#tiles.get(Number(target.dataset.round));
      if (!tile || isIntersecting === this.#inView.has(tile)) continue;
      if (isIntersecting) {
        this.#inView.add(tile);
        tile.load();
        this.#together.add(tile.video);
      } else {
        this.#inView.delete(tile);
        this.#together.remove(tile.video);
        tile.unload();
      }
    }
  }

  #tick() {
    for (const tile of this.#inView) tile.trace.time(tile.video.currentTime);
  }
}
