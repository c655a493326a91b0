export class Wall {
  show() {}
  leave() {}
}
