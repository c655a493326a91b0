export class Curves {
  show() {}
  leave() {}
}
