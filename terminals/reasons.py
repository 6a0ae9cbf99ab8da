"""Why a terminal says no: one table for all kinds of terminals, as data, in two languages."""

from __future__ import annotations

from enum import Enum, unique

from cardlib.errors import Refused


@unique
class Reason(Enum):
    """A refusal: its stable code, and what the screen says in Chinese and in English."""

    # the card
    NO_APPLICATION = ("no_application", "非本系统卡", "no application of this enterprise")
    FOREIGN_ENTERPRISE = ("foreign_enterprise", "非本单位卡", "card of another enterprise")
    ILLEGAL_CARD = ("illegal_card", "非法卡", "the card is not genuine")
    CARD_REFUSED = ("card_refused", "卡拒绝操作", "the card refuses")
    CARD_BLOCKED = ("card_blocked", "卡已锁定", "the card is blocked")
    APPLICATION_BLOCKED = ("application_blocked", "应用已锁定", "the application is blocked")
    KEYS_CHANGING = ("keys_changing", "请到充值点更新卡片", "the card must be renewed where cards are recharged")
    NOT_YET_VALID = ("not_yet_valid", "卡未启用", "the card is not valid yet")
    EXPIRED = ("expired", "卡已过期", "the card has expired")
    LOST = ("lost", "挂失卡", "card reported lost")
    CANCELLED = ("cancelled", "已注销", "card cancelled")
    REPLACED = ("replaced", "已补换", "card replaced by another")
    FRAUD = ("fraud", "黑名单卡", "card listed for fraud")
    # the terminal
    CLOCK_DOUBTFUL = ("clock_doubtful", "时钟异常", "the terminal's clock is doubtful")
    LIST_TOO_OLD = ("list_too_old", "名单过旧", "the blacklist is too old")
    STORAGE_FULL = ("storage_full", "存储已满", "the terminal's storage is full")
    COLLECTION_OVERDUE = ("collection_overdue", "请采集数据", "the journal must be collected first")
    PENDING_OTHER_CARD = ("pending_other_card", "请重放上一张卡", "present the card before this one again")
    SAM_FAULT = ("sam_fault", "安全模块故障", "the terminal's SAM can not be used")
    KEY_VERSION = ("key_version", "密钥版本不符", "the SAM lacks the card's key version")
    SHIFT_CLOSED = ("shift_closed", "未开班", "no shift is open")
    NO_OPERATOR = ("no_operator", "操作员未登录", "no operator is signed on")
    HOST_UNREACHABLE = ("host_unreachable", "联机失败", "the host can not be reached")
    HOST_REFUSED = ("host_refused", "主机拒绝", "the host refuses")
    # the payment
    AMOUNT_INVALID = ("amount_invalid", "金额无效", "the amount is not possible")
    PAYMENT_LIMIT = ("payment_limit", "超单笔限额", "above the limit of one payment")
    DAY_LIMIT = ("day_limit", "超日限额", "above the limit of one day")
    COUNT_LIMIT = ("count_limit", "超次数", "the number of payments is reached")
    OUTSIDE_PERIOD = ("outside_period", "非消费时段", "outside the meal periods")
    PERIOD_LIMIT = ("period_limit", "超时段限额", "above the limit of one meal period")
    NO_SUCH_ITEM = ("no_such_item", "无此菜品", "no such item on the menu")
    NO_PRICE = ("no_price", "未设价格", "no price is set for this way to charge")
    REPEAT_TAP = ("repeat_tap", "请勿重复刷卡", "the same card has just paid")
    BALANCE = ("balance", "余额不足", "the balance is not enough")
    MINIMUM_BALANCE = ("minimum_balance", "低于最低余额", "the minimum balance would be touched")
    BALANCE_EXPIRED = ("balance_expired", "余额已过期", "the balance has expired")
    VOID_BALANCE = ("void_balance", "过期余额未清，请到管理处", "the office must take an expired balance off first")
    MAXIMUM_BALANCE = ("maximum_balance", "超最高余额", "the purse would hold too much")
    LOAD_LIMIT = ("load_limit", "超单笔充值限额", "above the limit of one load")
    COUNTER_FULL = ("counter_full", "卡计数已满", "the card has no transactions left")
    PIN_REQUIRED = ("pin_required", "请输入密码", "enter the PIN")
    PIN_WRONG = ("pin_wrong", "密码错误", "wrong PIN")
    PIN_LOCKED = ("pin_locked", "密码已锁", "the PIN is locked")
    # the door
    NOT_THIS_DOOR = ("not_this_door", "无此门权限", "no right to pass this door")
    OUTSIDE_SCHEDULE = ("outside_schedule", "非通行时段", "outside the hours of this card")
    ANTI_PASSBACK = ("anti_passback", "防潜回", "the card is on the other side already")
    INTERLOCK = ("interlock", "互锁门未关", "another door stands open")
    FIRST_CARD = ("first_card", "首卡未刷", "nobody with the first card was here today")
    DOOR_AWAY = ("door_away", "门设备离线", "the door's hardware does not answer")
    # the undo
    NOTHING_TO_UNDO = ("nothing_to_undo", "无可撤销交易", "there is no payment to undo")
    UNDO_OTHER_CARD = ("undo_other_card", "非上笔消费卡", "not the card of the last payment")
    UNDO_TOO_LATE = ("undo_too_late", "超撤销时限", "too late to undo")
    UNDO_OTHER_SHIFT = ("undo_other_shift", "非本班交易", "the payment belongs to another shift")
    UNDO_UNPROVEN = ("undo_unproven", "交易未验证，不可撤销", "the payment was not proven here: undo it online")

    def __init__(self, code: str, zh: str, en: str) -> None:
        self.code = code
        self.zh = zh
        self.en = en

    def refusal(self, detail: str = "") -> Refused:
        """The error to raise: reason code and English text, with a detail for people."""
        return Refused(self.code, f"{self.en}: {detail}" if detail else self.en)


BY_CODE = {reason.code: reason for reason in Reason}
